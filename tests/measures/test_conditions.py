"""Networks conditioned on arrays beside the samples: every number is that of plain per-sample gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conditioned import CASES, arrays_of
from helpers import covariance_trace, randomised, row
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from mfdiag import InputError, measure, measure_quality
from mfdiag.flow.couplings import parse_coupling
from mfdiag.flow.data.datasets import FiniteData
from mfdiag.flow.draw import Draws
from mfdiag.flow.sources import GaussianSource
from mfdiag.flow.times import parse_times
from mfdiag.models.checkpoint import bundled, load_model
from mfdiag.models.teacher import teacher_velocity

N, ROWS = 24, 40


def network(case: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomised(CASES[case].network())


def plain_gradients(model: nn.Module, arrays: dict[str, np.ndarray], beta: float = 0.0) -> dict[str, Tensor]:
    """Gradients [N, P] of MeanFlow's loss by parameter, with the condition of the stored row that x_0 came from."""
    drawn = Draws(FiniteData("plain", arrays["x"]), parse_times("uniform"), 0).batch(np.arange(N))
    model = model.double()
    gradients: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for i in range(N):
        x0, x1, r, t = drawn.x0[i], drawn.x1[i], drawn.r[i : i + 1], drawn.t[i : i + 1]
        (stored,) = np.flatnonzero((arrays["x"] == x0.numpy()).reshape(ROWS, -1).all(1))
        own = {name: torch.as_tensor(a[stored : stored + 1]) for name, a in arrays.items() if name != "x"}

        def u(x: Tensor, t: Tensor, r: Tensor = r, own: dict[str, Tensor] = own) -> Tensor:
            times = (t, r) if type(model).__name__ == "Policy" else (r, t)
            return model(x, *times, **own)

        x_t, v_c = ((1 - t) * x0 + t * x1)[None], (x1 - x0)[None]
        vhat = u(x_t, t, t).detach()
        tangent = v_c + beta * (vhat - v_c)
        value, derivative = torch.autograd.functional.jvp(u, (x_t, t), (tangent, torch.ones_like(t)))
        e = (value + (t - r) * derivative - v_c).detach()
        loss = (u(x_t, t) * 2 * e).sum()
        for name, gradient in zip(gradients, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            gradients[name].append(gradient.flatten())
    return {name: torch.stack(rows) for name, rows in gradients.items()}


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_variance_is_that_of_plain_gradients(case: str, engine: Any) -> None:
    model, arrays = network(case), arrays_of(case, ROWS)
    conditions = {name: values for name, values in arrays.items() if name != "x"}
    table = measure(
        model, arrays["x"], conditions=conditions, tables=["variance"], times="uniform", samples=N, engine=engine,
        dtype=torch.float64, estimators=["meanflow", "self_tangent"], bins=None,
    )["variance"]  # fmt: skip
    for estimator, beta in (("meanflow", 0.0), ("self_tangent", 1.0)):
        expected = plain_gradients(model, arrays, beta)
        whole = row(table, layer="all", quantity="variance", estimator=estimator)["value"]
        assert whole == pytest.approx(covariance_trace(torch.cat(list(expected.values()), 1)), rel=1e-9)
        for layer in {name.rpartition(".")[0] for name in expected}:
            parts = torch.cat([g for name, g in expected.items() if name.rpartition(".")[0] == layer], 1)
            value = row(table, layer=layer, quantity="variance", estimator=estimator)["value"]
            assert value == pytest.approx(covariance_trace(parts), rel=1e-8)


def test_an_array_that_the_network_does_not_take_is_refused() -> None:
    arrays = arrays_of("policy", ROWS)
    with pytest.raises(InputError, match=r"array heights .* Policy does not receive.*conditions=none"):
        measure(network("policy"), arrays["x"], conditions={"obs": arrays["obs"], "heights": np.ones(ROWS)}, samples=8)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (np.zeros((ROWS - 1, 2, 3)), f"one row of 'obs' for each of {ROWS}"),
        (np.zeros((2, 3)), f"one row of 'obs' for each of {ROWS}"),
        (np.float64(1.0), "single number"),
        (np.array([[1.0], [1.0, 2.0]], dtype=object), "rows of different lengths"),
        (np.array(["left"] * ROWS), "holds text"),
        (np.full((ROWS, 2, 3), np.nan), "NaN"),
    ],
)
def test_conditions_that_cannot_be_passed_are_refused(values: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        measure(network("policy"), arrays_of("policy", ROWS)["x"], conditions={"obs": values}, samples=8)


def test_a_missing_condition_is_refused() -> None:
    with pytest.raises(InputError, match=r"also needs obs.*add arrays of this name"):
        measure(network("policy"), arrays_of("policy", ROWS)["x"], samples=8)


def test_conditions_beside_the_data_of_a_loaded_checkpoint_are_not_ignored() -> None:
    loaded = load_model(bundled())
    for data in (None, "eight_gaussians"):
        with pytest.raises(InputError, match="one row of 'obs' for each of 100,000 samples of eight_gaussians"):
            measure(loaded, data, conditions={"obs": np.zeros((5, 2))}, tables=["variance"], samples=8)


class Ignoring(nn.Module):
    """Takes tokens and a mask, embeds the tokens, and uses neither."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inside, self.gate = nn.Embedding(9, 2), nn.Linear(2, 2), nn.Linear(3, 2)
        nn.init.zeros_(self.gate.weight)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, tokens: Tensor, obs: Tensor) -> Tensor:
        self.embedding(tokens)
        return self.inside(x) + self.gate(obs)


def test_a_condition_that_is_never_used_is_refused_but_a_closed_gate_is_not() -> None:
    x, obs = np.zeros((ROWS, 2)), np.random.default_rng(0).normal(size=(ROWS, 3))
    with pytest.raises(InputError, match=r"takes the array 'tokens' .*does not depend on it"):
        measure(Ignoring(), x, conditions={"tokens": np.arange(ROWS) % 9, "obs": obs}, samples=8)


class ByValue(nn.Module):
    """Conditioned on one number and, if `labeled`, on a class."""

    def __init__(self, labeled: bool = False) -> None:
        super().__init__()
        self.inside, self.out = nn.Linear(5, 6), nn.Linear(6, 2)
        self.labels = nn.Embedding(4, 6) if labeled else None
        self.num_classes = 3 * labeled

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None, *, goal: Tensor) -> Tensor:
        h = self.inside(torch.cat([x, r[:, None], t[:, None], goal], 1))
        if self.labels is not None and y is not None:
            h = h + self.labels(y)
        return self.out(torch.tanh(h))


@pytest.mark.parametrize("labeled", [False, True])
def test_the_posterior_is_that_of_the_samples_with_the_same_condition(labeled: bool) -> None:
    generator = np.random.default_rng(0)
    x, goal, y = generator.normal(size=(30, 2)), generator.integers(0, 2, (30, 1)) / 2, np.arange(30) % 3
    data = FiniteData("goals", x, y, {"goal": goal})
    draws = Draws(data, parse_times("uniform"), 0, conditional=labeled, conditions=("goal",))
    batch = draws.batch(np.arange(N))
    posterior = draws.velocity_posterior(batch)
    assert posterior is not None
    for i in range(N):
        (stored,) = np.flatnonzero((x == batch.x0[i].numpy()).all(1))
        same = (goal[:, 0] == goal[stored, 0]) & ((y == y[stored]) | (not labeled))
        assert batch.conditions["goal"][i] == goal[stored]
        t = float(batch.t[i])
        logits = -((batch.x_t[i].numpy() - (1 - t) * x[same]) ** 2).sum(1) / (2 * t**2)
        weights = np.exp(logits - logits.max())
        mean = (weights / weights.sum()) @ ((batch.x_t[i].numpy() - x[same]) / t)
        np.testing.assert_allclose(posterior.mean[i], mean, rtol=1e-6, atol=1e-8)


def test_conditional_variance_is_exact_per_value_and_absent_where_each_sample_has_its_own() -> None:
    generator = np.random.default_rng(0)
    model, x = randomised(ByValue()), generator.normal(size=(60, 2))
    notes: list[str] = []
    shared = measure(model, x, conditions={"goal": np.arange(60)[:, None] % 3}, tables=["variance"], samples=N)
    alone = measure(
        model, x, conditions={"goal": generator.normal(size=(60, 1))}, tables=["variance"], samples=N, say=notes.append
    )
    assert "conditional_variance" in set(shared["variance"]["quantity"])
    assert "conditional_variance" not in set(alone["variance"]["quantity"])
    assert any("100% of the samples of array have a value of goal of their own" in note for note in notes)


@pytest.mark.parametrize("coupling", ["independent", "minibatch_ot:4", "gibbs:5"])
def test_a_condition_stays_with_its_sample(coupling: str) -> None:
    arrays = arrays_of("policy", ROWS)
    data = FiniteData("policy", arrays["x"], None, {"obs": arrays["obs"]})
    source = GaussianSource(data.shape)
    pairs = parse_coupling(coupling, data, source, lambda _: None)  # type: ignore[arg-type, return-value]
    draws = Draws(data, parse_times("uniform"), 3, coupling=pairs, conditions=("obs",))
    whole = draws.batch(np.arange(N))
    for i in range(N):
        (stored,) = np.flatnonzero((arrays["x"] == whole.x0[i].numpy()).reshape(ROWS, -1).all(1))
        np.testing.assert_array_equal(whole.conditions["obs"][i], arrays["obs"][stored])
        np.testing.assert_array_equal(draws.batch(np.array([i])).conditions["obs"][0], arrays["obs"][stored])


def test_reflow_solves_the_ode_of_each_samples_own_condition(tmp_path: Path) -> None:
    """Each pair against an ODE solver, with the row of the condition that the batch has."""
    torch.save(network("policy", seed=1).state_dict(), tmp_path / "teacher.pt")
    (tmp_path / "policy.yaml").write_text(
        "network: {factory: 'conditioned:Policy'}\ncall: {arguments: [x, t, r], conditions: {obs: {array: obs}}}\n"
    )
    arrays = arrays_of("policy", ROWS)
    data = FiniteData("policy", arrays["x"], None, {"obs": arrays["obs"]})
    spec = f"reflow:{tmp_path}/teacher.pt@{tmp_path}/policy.yaml,64"
    coupling = parse_coupling(spec, data, GaussianSource(data.shape), lambda file: teacher_velocity(file, data=data))
    batch = Draws(data, parse_times("uniform"), 3, coupling=coupling, conditions=("obs",)).batch(np.arange(4))
    teacher = network("policy", seed=1).double()
    for x0, x1, obs in zip(batch.x0, batch.x1, batch.conditions["obs"], strict=True):

        def rate(t: float, x: np.ndarray, obs: Tensor = obs) -> np.ndarray:
            time = torch.full((1,), t, dtype=torch.float64)
            v = teacher(torch.as_tensor(x).view(1, 4, 2), time, time, obs[None])
            return v.detach().numpy().ravel()

        solved = solve_ivp(rate, (1, 0), x1.numpy().ravel(), rtol=1e-9, atol=1e-9).y[:, -1]
        np.testing.assert_allclose(x0.numpy().ravel(), solved, rtol=1e-4, atol=1e-5)
    options: dict[str, Any] = {"conditions": {"obs": arrays["obs"]}, "coupling": spec, "samples": N}
    frame = measure(network("policy"), arrays["x"], tables=["sweep"], **options)["sweep"]
    assert np.isfinite(frame["value"].dropna()).all() and set(frame["quantity"])
    with pytest.raises(InputError, match="Expected data with the array 'obs', because the teacher"):
        measure(Unconditioned(), arrays["x"], coupling=spec)


class Unconditioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.linear(x)


def test_quality_samples_under_conditions_of_the_data() -> None:
    class Moved(nn.Module):  # one step ends exactly at the goal: x - u = goal
        def forward(self, x: Tensor, r: Tensor, t: Tensor, goal: Tensor) -> Tensor:
            return x - goal

    goals = np.random.default_rng(0).normal(size=(400, 2))
    data = FiniteData("goals", goals, None, {"goal": goals})
    table = measure_quality(Moved(), data, nfe=[1], metrics=["frechet_distance"], samples=4096)
    assert 0 <= row(table, metric="frechet_distance")["value"] < 0.02


class Conditioned(nn.Module):
    """A linear network of points [n, 2], times, and an array of three numbers per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(7, 2)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, obs: Tensor) -> Tensor:
        return self.linear(torch.cat([x, r[:, None], t[:, None], obs], 1)).tanh()


def test_a_path_in_memory_is_read_with_the_arrays_that_the_network_takes(tmp_path: Path) -> None:
    x, obs = np.random.default_rng(0).normal(size=(2, ROWS, 3)).astype(np.float32)
    x = x[:, :2]
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "x.npy", x)
    np.save(tmp_path / "folder" / "obs.npy", obs)
    columns = {f"x_{i}": x[:, i] for i in range(2)} | {f"obs_{i}": obs[:, i] for i in range(3)}
    pd.DataFrame(columns).to_parquet(tmp_path / "table.parquet")
    torch.manual_seed(0)
    model, options = Conditioned(), {"tables": ["variance"], "samples": N, "by_layer": False}
    expected = measure(model, x, conditions={"obs": obs}, **options)["variance"]["value"]
    for name in ("folder", "table.parquet"):
        pd.testing.assert_series_equal(measure(model, str(tmp_path / name), **options)["variance"]["value"], expected)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (np.zeros((ROWS, 2)), r"Expected labels for obs of Conditioned\.forward, or an array of this name, but array"),
        ([{"x": np.ones(2) * i, "obs": {"state": np.ones(3)}} for i in range(ROWS)], r"\{obs: \{state: obs\.state\}\}"),
        ([(np.ones(2) * i, np.ones(3)) for i in range(ROWS)], r"Return \(sample, \{NAME: values\}\) with the name of"),
    ],
)
def test_what_the_network_takes_and_the_data_lack_is_said_with_the_remedy(data: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        measure(Conditioned(), data, samples=8)
