"""`compare`: closed forms on Gaussian data, a slow twin from multiplied-out gradients, intervals that cover."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import estimator_cases as cases
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import Shifted, accumulated, one_cell, randomised, row, rows
from torch import nn

from mfdiag import InputError, measure
from mfdiag.coefficients.mixture import mixture_weights
from mfdiag.estimators import estimators, find_estimator
from mfdiag.flow.data.datasets import FiniteData, GaussianData
from mfdiag.flow.draw import Draws
from mfdiag.flow.seeds import uniforms
from mfdiag.flow.times import parse_times
from mfdiag.flow.weighting import Weighting
from mfdiag.gradients.accumulate import sum_layers
from mfdiag.gradients.intervals import skewed_jackknife
from mfdiag.measures.parts.compare_plan import ComparePlan, Maps
from mfdiag.measures.parts.method_statistics import method_statistics
from mfdiag.models.networks.gaussian import GaussianAverageVelocity
from mfdiag.models.networks.mlp import MLP

DIM, MEAN, SAMPLES = 3, 0.7, 2048
SHIFT = torch.tensor([0.3, -0.2, 0.6], dtype=torch.float64)  # the teacher's bias b
POINTS = [(0.5, 0.2, 0.9), (2.0, 0.1, 0.6), (1.3, 0.3, 0.8)]


def exact_model(std: float) -> nn.Module:
    model = GaussianAverageVelocity(0.0, 1.0, (DIM,)).double()
    nn.init.constant_(model.mean, MEAN)
    nn.init.constant_(model.std, std)
    return model


class Truth:
    """Closed forms at one (r, t) for the exact model u = slope y - m, y = x_t - (1-t) m, with parameters m and s.

    v' is independent of y, with covariance sigma2 I; y has s_t^2 I. A residual e = p y + q v' + c has per-sample
    gradient 2 (du/dtheta)^T e with du/dm = -(1 + slope (1-t)) I and du/ds = slope' y, so that its moments are those of
    normal variables.
    """

    def __init__(self, std: float, r: float, t: float) -> None:
        self.std, self.r, self.t = std, r, t
        self.s2 = (1 - t) ** 2 * std**2 + t**2
        self.sigma2 = std**2 / self.s2

    def slope(self, r: float, t: float, std: torch.Tensor | None = None) -> torch.Tensor:
        s = torch.tensor(self.std, dtype=torch.float64) if std is None else std
        s_r, s_t = (((1 - a) ** 2 * s**2 + a**2).sqrt() for a in (r, t))
        return ((t + r) - s**2 * (2 - t - r)) / (s_t * (s_t + s_r))

    def moments(self, p: float, q: float, c: torch.Tensor, r: float) -> tuple[float, float, float]:
        """variance, conditional variance and squared bias of the gradient at (r, t) for e = p y + q v' + c."""
        s = torch.tensor(self.std, dtype=torch.float64, requires_grad=True)
        (rate,) = torch.autograd.grad(self.slope(r, self.t, s), s)
        k_m, k_s, c2 = (1 + float(self.slope(r, self.t)) * (1 - self.t)) ** 2, float(rate) ** 2, float(c @ c)
        s2, d = self.s2, DIM
        within = 4 * q**2 * self.sigma2 * d * (k_m + k_s * s2)
        # between: in m, -2 k (p y + c); in s, 2 rate (p |y|^2 + c.y) with Var |y|^2 = 2 d s_t^4
        between = 4 * (k_m * p**2 * d * s2 + k_s * (p**2 * 2 * d * s2**2 + c2 * s2))
        bias2 = 4 * (k_m * c2 + k_s * (p * d * s2) ** 2)
        return within + between, within, bias2

    def of(self, name: str) -> tuple[float, float, float]:
        r, t, nothing = self.r, self.t, 0 * SHIFT
        a = 1 - float(np.sqrt(((1 - r) ** 2 * self.std**2 + r**2) / self.s2))
        if name in ("meanflow", "self_tangent"):
            return self.moments(0, {"meanflow": a - 1, "self_tangent": -1}[name], nothing, r)
        if name.startswith("teacher"):
            beta, gamma = {"teacher_tangent": (1, 0), "teacher_target": (0, 1), "teacher": (1, 1)}[name]
            return self.moments(0, (1 - beta) * a - (1 - gamma), (beta * a - gamma) * SHIFT, r)
        if name == "flow_matching":
            return self.moments(0, -1, nothing, t)
        if name.startswith("restricted_meanflow"):
            near = t - 0.5 * (t - r) if name.endswith(":0.5,1") else max(r, t - 0.2)
            rho = float(np.sqrt(((1 - near) ** 2 * self.std**2 + near**2) / self.s2))
            return self.moments(0, -rho, nothing, near)
        # alpha-Flow: x_s - (1-s) m = (1 - (t-s) slope_tt) y - (t-s) v'
        alpha = float(name.partition(":")[2])
        s = t - alpha * (t - r)
        now, end, early = (float(self.slope(*at)) for at in ((t, t), (r, t), (r, s)))
        p = (end - alpha * now - (1 - alpha) * early * (1 - (t - s) * now)) / alpha
        q = (-alpha + (1 - alpha) * early * (t - s)) / alpha
        return self.moments(p, q, nothing, r)


METHODS = (
    "meanflow",
    "self_tangent",
    "teacher_tangent",
    "teacher_target",
    "teacher",
    "flow_matching",
    "restricted_meanflow:0.2",
    "restricted_meanflow:0.5,1",
    "alpha_flow:0.3",
)


@cache
def compared(std: float, r: float, t: float) -> pd.DataFrame:
    model = exact_model(std)
    return measure(
        model,
        f"gaussian:{DIM},{MEAN},{std}",
        tables=["compare"],
        times=f"point:{r},{t}",
        proxy="teacher",
        proxy_model=Shifted(model, SHIFT),
        estimators=METHODS,
        batch_sizes=(1, 100),
        samples=SAMPLES,
        by_layer=False,
        dtype=torch.float64,
    )["compare"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("at", POINTS)
def test_moments_are_the_closed_forms(at: tuple[float, float, float], name: str) -> None:
    frame, truth = compared(*at), Truth(*at)
    (variance, within, bias2), (variance_0, within_0, _) = truth.of(name), truth.of("meanflow")
    expected = {
        ("variance", None): variance,
        ("conditional_variance", None): within,
        ("bias2", None): bias2,
        ("variance_ratio", None): variance / variance_0,
        ("conditional_variance_ratio", None): within / within_0,
        **{("mse", n): variance / n + bias2 for n in (1, 100)},
        **{("mse_ratio", n): (variance / n + bias2) / (variance_0 / n) for n in (1, 100)},
    }
    # the mean in s vanishes for a constant residual: its square is a degenerate U-statistic, whose own spread of
    # sqrt(2) Var / N the jackknife misses
    degenerate = 2**0.5 * (variance - within) / SAMPLES
    for (quantity, n), value in expected.items():
        found = row(frame, estimator=name, quantity=quantity, batch_size=n)
        spread = degenerate * {"bias2": 1, "mse": 1, "mse_ratio": (n or 1) / variance_0}.get(quantity, 0)
        errors = np.hypot(found["std_error"], spread)
        assert abs(found["value"] - value) <= 4 * errors + 1e-9 * variance_0, (quantity, found.to_dict())
        if quantity.startswith("variance") and value > 1e-3 * variance_0:
            assert found["std_error"] <= 0.1 * value, "too noisy to tell"


@pytest.mark.parametrize("at", POINTS)
def test_biases_of_an_exact_model(at: tuple[float, float, float]) -> None:
    """Rao-Blackwell: methods whose mean residual vanishes have no measured bias at all, to rounding."""
    frame = compared(*at)
    for name in ("self_tangent", "flow_matching", "restricted_meanflow:0.2", "restricted_meanflow:0.5,1"):
        found = row(frame, estimator=name, quantity="bias2")
        assert abs(found["value"]) < 1e-12
    assert row(frame, estimator="teacher_target", quantity="bias2")["ci_low"] > 0


# -- the slow twin ------------------------------------------------------------------------------------------

SPECS = ["meanflow", "ema_tangent", "shortcut", "alpha_flow", "split_meanflow", "flow_matching", "terminal_velocity"]
N = 256


@cache
def slow() -> tuple[pd.DataFrame, ComparePlan, np.ndarray]:
    """The table of a small network, and the gradients [C, N, P] of its group."""
    torch.manual_seed(0)
    module, ema = (randomised(MLP(2, 6, 1), seed=k).double().eval().requires_grad_(False) for k in (0, 1))
    data = FiniteData("points", np.random.default_rng(0).standard_normal((40, 2)))
    frame = measure(
        module,
        data,
        tables=["compare"],
        times="uniform",
        proxy="ema",
        proxy_model=ema,
        estimators=SPECS,
        batch_sizes=(10,),
        samples=N,
        bins=(1, 2),
        dtype=torch.float64,
    )["compare"]
    law = Draws(data, parse_times("uniform"), 0)
    plan, found = cases.gradients(SPECS, module, law, "reference", {"ema": ema}, samples=N)
    return frame, plan, found.numpy()


def pairs(left: np.ndarray, right: np.ndarray) -> float:
    """Mean of <left_i, right_j> over i != j: unbiased <E left, E right>."""
    n = len(left)
    return float((left.sum(0) @ right.sum(0) - (left * right).sum()) / (n * (n - 1)))


def expected(plan: ComparePlan, found: np.ndarray) -> dict[str, dict[str, float]]:
    """name -> quantity -> value, one estimator at a time from gradients [C, n, P]."""
    assert plan.maps.within is not None
    value, mean, within = (np.einsum("kc,cnp->knp", m, found) for m in plan.maps)
    result = {}
    for k, estimator in enumerate(plan.estimators):
        candidates = [mean[k] - mean[0], value[k] - value[0]]
        bias = min(candidates, key=lambda g: g.var(0, ddof=1).sum())
        middle = mean[0] + bias
        one = {
            "variance": value[k].var(0, ddof=1).sum(),
            "conditional_variance": (within[k] ** 2).sum(1).mean(),
            "bias2": pairs(bias, bias),
            "cosine": pairs(middle, mean[0]) / np.sqrt(pairs(middle, middle) * pairs(mean[0], mean[0]) + 0j).real,
        }
        one["mse"] = one["variance"] / 10 + one["bias2"]
        result[estimator.name] = one
    for one in result.values():
        for quantity in ("variance", "conditional_variance", "mse"):
            one[f"{quantity}_ratio"] = one[quantity] / result["meanflow"][quantity]
    return result


def held(frame: pd.DataFrame, truth: dict[str, dict[str, float]], **keys: object) -> None:
    for name, values in truth.items():
        for quantity, value in values.items():
            given = row(frame, estimator=name, quantity=quantity, **keys)["value"]
            if quantity != "cosine" or np.isfinite(given):
                assert given == pytest.approx(value, rel=1e-6, abs=1e-9), (name, quantity)


NO_BINS = {"t_low": None, "t_high": None}


def test_table_equals_multiplied_out_gradients() -> None:
    frame, plan, found = slow()
    held(frame, expected(plan, found), layer="all", **NO_BINS)


def test_by_layer_and_by_time() -> None:
    frame, plan, found = slow()
    first = 6 * 4 + 6  # entries of the first layer
    held(frame, expected(plan, found[:, :, :first]), layer="layers.0", **NO_BINS)
    held(frame, expected(plan, found[:, :, first:]), layer="layers.2", **NO_BINS)
    t = np.sort(uniforms(0, "times", np.arange(N), 3)[:, :2], axis=1)[:, 1]
    held(frame, expected(plan, found[:, t < 0.5]), layer="all", t_low=0.0)
    held(frame, expected(plan, found[:, t >= 0.5]), layer="all", t_low=0.5)
    binned = frame[frame["t_low"].notna()]
    assert set(binned["layer"]) == {"all"}


def test_mixture_equals_its_definition() -> None:
    frame, plan, found = slow()
    assert plan.maps.within is not None
    block = np.arange(N) * 64 // N
    value, mean = (np.einsum("kc,cnp->knp", m, found) for m in plan.maps[:2])

    def bias_of(chosen: np.ndarray) -> np.ndarray:
        candidates = [mean[:, chosen] - mean[:1, chosen], value[:, chosen] - value[:1, chosen]]
        spread = np.stack([c.var(1, ddof=1).sum(-1) for c in candidates])
        return np.where((spread[0] <= spread[1])[:, None, None], *candidates)

    def weights(chosen: np.ndarray, n: float) -> np.ndarray:
        centred = value[:, chosen] - value[:, chosen].mean(1, keepdims=True)
        covariance = np.einsum("knp,lnp->kl", centred, centred) / (chosen.sum() - 1)
        bias = bias_of(chosen)
        product = np.array([[pairs(a, b) for b in bias] for a in bias])
        return mixture_weights(covariance, product, n)

    everything, even = np.ones(N, bool), block % 2 == 0
    for n in (None, 10):
        found_weights = [
            row(frame, estimator=e.name, quantity="mixture_weight", batch_size=n)["value"] for e in plan.estimators
        ]
        np.testing.assert_allclose(found_weights, weights(everything, n or 0), rtol=1e-5, atol=1e-7)
        w = weights(even, n or 0)
        mixed, bias = np.tensordot(w, value[:, ~even], 1), np.tensordot(w, bias_of(~even), 1)
        error, plain = (g.var(0, ddof=1).sum() / (n or 1) for g in (mixed, value[0, ~even]))
        error += pairs(bias, bias) if n else 0
        gain = row(frame, estimator="mixture", quantity="mixture_gain", batch_size=n)
        assert gain["value"] == pytest.approx(plain / error, rel=1e-5)
        assert gain["n_samples"] == N // 2


# -- unbiasedness, intervals, weights, what is left out -------------------------------------------------------


def test_unbiased_methods_are_measured_unbiased() -> None:
    """Without the posterior nothing is taken for granted: the bias of the multi-sample target is measured."""
    torch.manual_seed(0)
    module = randomised(MLP(2, 8, 1)).double()
    frame = measure(
        module,
        GaussianData(2, 0.5, 0.7),
        tables=["compare"],
        times="uniform",
        estimators=["stable_velocity", "finite_difference:0.0001", "alpha_flow:1"],
        samples=4096,
        posterior="none",
        by_layer=False,
    )["compare"]
    for name in ("stable_velocity", "finite_difference:0.0001"):
        found = row(frame, estimator=name, quantity="bias2")
        # within twice the interval: two 95 % intervals themselves miss one time in ten
        assert 2 * found["ci_low"] - found["value"] <= 0 <= 2 * found["ci_high"] - found["value"], name
    assert row(frame, estimator="alpha_flow:1", quantity="bias2")["ci_low"] > 0  # it can tell
    assert row(frame, estimator="stable_velocity", quantity="variance_ratio")["ci_high"] < 1


def test_ratio_intervals_cover() -> None:
    """Two correlated gradients in five dimensions, of heavy tails: 95 % intervals of the variance ratio."""
    rng, hits, repeats, n = np.random.default_rng(0), 0, 300, 512
    maps = Maps(np.eye(2), np.eye(2), None)
    for _ in range(repeats):
        common, own = rng.standard_t(8, (n, 5)), rng.standard_t(8, (n, 5))
        pair = torch.as_tensor(np.stack([common, 0.5 * common + own]))
        moments = sum_layers(accumulated(pair, 1, one_cell(n)).moments[0]).replicates()
        with np.errstate(invalid="ignore"):
            ratio = method_statistics(moments, maps)["variance_ratio"]
            estimate = skewed_jackknife(ratio, moments.count, nonnegative=True)
        hits += bool(estimate.low[1] <= 1.25 <= estimate.high[1])
    assert 0.91 <= hits / repeats <= 0.985


def test_weights_apply_to_every_method() -> None:
    """Under an adaptive weight with p = 1 and a huge eps, every gradient is the plain one over eps."""
    torch.manual_seed(0)
    module, eps = randomised(MLP(2, 6, 1)), 1e12
    names = ["meanflow", "alpha_flow", "flow_matching", "terminal_velocity:0"]
    plain, weighed = (
        measure(
            module,
            "gaussian:2,0,1",
            tables=["compare"],
            times="uniform",
            estimators=names,
            samples=128,
            weighting=weighting,
            by_layer=False,
            dtype=torch.float64,
        )["compare"]
        for weighting in ("none", f"adaptive:1,{eps}")
    )
    for name in names:
        one, other = (row(frame, estimator=name, quantity="variance")["value"] for frame in (plain, weighed))
        assert other * eps**2 == pytest.approx(one, rel=1e-6)
        assert row(weighed, estimator=name, quantity="conditional_variance")["value"] > 0


def test_meanflow_is_the_reference_even_where_it_is_not_listed() -> None:
    frame = measure(MLP(2, 4, 1), "gaussian:2,0,1", tables=["compare"], estimators=["self_tangent"], samples=64)[
        "compare"
    ]
    assert set(rows(frame, quantity="variance")["estimator"]) == {"self_tangent"}
    assert set(rows(frame, quantity="mixture_weight")["estimator"]) == {"meanflow", "self_tangent"}


def test_what_cannot_be_measured_is_left_out_and_said() -> None:
    said: list[str] = []
    frame = measure(
        MLP(2, 4, 1),
        "gaussian:2,0,1",
        tables=["compare"],
        estimators=["all"],
        samples=32,
        by_layer=False,
        say=said.append,
    )["compare"]
    lacking = {name for name, e in estimators().items() if e.needs.networks or e.template}
    assert set(frame["estimator"]) == set(estimators()) - lacking | {"mixture"}
    text = "\n".join(said)
    of_teachers = sorted(name for name, e in estimators().items() if "teacher" in e.needs.networks)
    assert f"{', '.join(of_teachers)} left out: no teacher was passed" in text
    assert "head_tangent left out: the network has no velocity head" in text
    assert "ema_tangent, shortcut, terminal_velocity left out: the checkpoint has no EMA weights" in text
    for names, message in (
        (["cmt"], "--estimator cmt cannot be measured: no teacher was passed"),
        (["head_tangent"], "no velocity head"),
        (["shortcut"], "the checkpoint has no EMA weights; pass shortcut:128,0"),
        (["terminal_velocity"], "no EMA weights; pass terminal_velocity:ema=0"),
    ):
        with pytest.raises(InputError, match=message):
            measure(MLP(2, 4, 1), "gaussian:2,0,1", tables=["compare"], estimators=names, samples=32)
    with pytest.raises(InputError, match="independent pairs"):
        measure(
            MLP(2, 4, 1),
            "gaussian:2,0,1",
            tables=["compare"],
            estimators=["stable_velocity"],
            samples=32,
            path="trigonometric",
        )
    with pytest.raises(InputError, match="only `mfdiag compare`"):
        measure(MLP(2, 4, 1), "gaussian:2,0,1", tables=["variance"], estimators=["flow_matching"], samples=32)


BROKEN = """
from mfdiag.estimators import Estimator

def always(fields):
    raise NotImplementedError("this network has no such thing")

def rarely(fields):
    if (fields.t > 0.93).any():
        raise ValueError("t is too large")
    return fields.u - fields.v_c

def loss(fields, network):
    return network(fields.x[:, :1], fields.r, fields.t).square().sum(1)

ALWAYS = Estimator("always", "fails on every sample", "none", "none", always)
RARELY = Estimator("rarely", "fails on some samples", "none", "none", rarely)
LOSS = Estimator("own_loss", "calls the network with another shape", "none", "none", loss=loss)
"""


@pytest.mark.parametrize(
    ("name", "reason"),
    [("always", "this network has no such thing"), ("rarely", "t is too large"), ("own_loss", "shape")],
)
def test_an_estimator_that_fails_ends_no_other(name: str, reason: str, tmp_path: Path) -> None:
    """The numbers of the others are bit for bit those without it."""
    (tmp_path / "broken.py").write_text(BROKEN)
    attribute = {"own_loss": "LOSS"}.get(name, name.upper())
    others = ["meanflow", "alpha_flow", "dispersive"]
    torch.manual_seed(0)
    model, said = MLP(2, 4, 1), list[str]()

    def compared(names: list[str]) -> pd.DataFrame:
        return measure(
            model, "gaussian:2,0,1", tables=["compare"], estimators=names, samples=256, bins=(2, 2), say=said.append
        )["compare"]

    frame = compared([others[0], f"{tmp_path}/broken.py:{attribute}", *others[1:]])
    (note,) = [note for note in said if "left out" in note]
    assert note.startswith(f"{name} left out: it cannot be measured on this network: ") and reason in note
    pd.testing.assert_frame_equal(frame, compared(others), check_exact=True)
    with pytest.raises((RuntimeError, ValueError), match=reason):
        compared([f"{tmp_path}/broken.py:{attribute}"])


def test_a_velocity_head_is_found() -> None:
    module = cases.networks()[0]
    frame = measure(
        module.float(),
        FiniteData("points", np.random.default_rng(0).standard_normal((9, 3)), np.arange(9) % 3),
        tables=["compare"],
        estimators=["head_tangent"],
        samples=32,
        by_layer=False,
    )["compare"]
    module.double()
    assert row(frame, quantity="variance", estimator="head_tangent")["value"] > 0


def test_groups_hold_no_more_than_they_need() -> None:
    """Points of the plane share two columns; of the others each brings one more."""
    found = [
        find_estimator(name)
        for name in ("meanflow", "ema_tangent", "teacher", "shortcut", "alpha_flow", "flow_matching")
    ]
    assert ComparePlan(found, Weighting(), False).size == 6
    assert ComparePlan(found, Weighting(), True).size == 6 + 2 + 3
    assert ComparePlan(found, Weighting(1.0), True).size == 12
