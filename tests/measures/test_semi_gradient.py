"""The semi-gradient gap against plain double backward, closed forms and the theorem that splits it in two."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import Sample, Unknown, accumulated, covariance_trace, one_cell, randomised, row, rows, samples_of
from torch import Tensor, nn
from torch.autograd.functional import jvp

from mfdiag import InputError, load_data, measure
from mfdiag.flow.data.datasets import Data
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import parse_times
from mfdiag.gradients.accumulate import sum_layers
from mfdiag.gradients.intervals import Estimate
from mfdiag.measures.parts.semi_gradient import gap_statistics
from mfdiag.models.networks.mlp import MLP

SAMPLES = 48
KNOWN = load_data("mixture:2,3")
WEIGHTS = {"none": (0.0, 1e-3), "adaptive:0.5,0.01": (0.5, 0.01)}
NAMES = ("", "_field", "_noise", "_ratio", "_cosine", "_variance")


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomised(MLP(2, hidden=6, depth=2)).double()


def gap_of(model: nn.Module, data: Data, weighting: str = "none", **options: object) -> pd.DataFrame:
    given: dict[str, object] = {"times": "uniform", "samples": SAMPLES, "by_layer": False, "dtype": torch.float64}
    frame = measure(
        model,
        data,
        tables=["variance"],
        estimators=["meanflow"],
        weighting=weighting,
        extras=["semi_gradient_gap"],
        **(given | options),  # type: ignore[arg-type]
    )["variance"]
    return frame


def value(frame: pd.DataFrame, which: str, **keys: object) -> pd.Series:
    return row(frame, quantity=f"semi_gradient_gap{which}", **({"layer": "all", "t_low": None} | keys))


# -- against gradients of single samples ------------------------------------------------------------------------


def residual(model: nn.Module, s: Sample, v: Tensor, create_graph: bool = True) -> tuple[Tensor, Tensor]:
    """u and (t-r) (du/dx v + du/dt), both with a graph to the parameters."""

    def u(x: Tensor, t: Tensor) -> Tensor:
        return model(x[None], s.r[None], t[None], None if s.y is None else s.y[None])[0]

    value, along = jvp(u, (s.x, s.t), (v, torch.ones_like(s.t)), create_graph=create_graph)
    return value, (s.t - s.r) * along


def gradient_of(loss: Tensor, model: nn.Module) -> Tensor:
    wanted = list(model.parameters())
    found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def full_and_semi(model: nn.Module, s: Sample, v: Tensor, p: float = 0.0, eps: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Gradients of w |e|^2 with tangent and target v, without and with stop-gradient on all but the leading u."""
    u, rest = residual(model, s, v)
    weight = ((u + rest - v).square().sum().detach() + eps) ** -p
    full = gradient_of(weight * (u + rest - v).square().sum(), model)
    u, rest = residual(model, s, v)
    return full, gradient_of(weight * (u + rest.detach() - v).square().sum(), model)


def noise_term(model: nn.Module, s: Sample, fluctuation: Tensor) -> Tensor:
    """Gradient of |J v'|^2 by the full Jacobian."""
    columns = [residual(model, s, basis)[1] - residual(model, s, torch.zeros_like(basis))[1] for basis in torch.eye(2)]
    jacobi = torch.stack(columns, 1) - torch.eye(2)
    return gradient_of((jacobi @ fluctuation).square().sum(), model)


def unbiased(a: Tensor, b: Tensor) -> float:
    """<E a, E b> from rows of gradients, over pairs of unlike samples."""
    n = len(a)
    return float((a.sum(0) @ b.sum(0) - (a * b).sum()) / (n * (n - 1)))


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("data", [KNOWN, Unknown(KNOWN)], ids=["known", "unknown"])
def test_every_quantity_by_its_definition(data: Data, weighting: str, engine: str) -> None:
    model, (p, eps) = network(), WEIGHTS[weighting]
    found = gap_of(model, data, weighting, engine=engine)
    draws = Draws(data, parse_times("uniform"), 0)
    known = draws.velocity_posterior(draws.batch(np.arange(SAMPLES)))
    full, semi, field, noise, mean = [], [], [], [], []
    for k, s in enumerate(samples_of(draws, SAMPLES, model)):
        both = full_and_semi(model, s, s.v_c, p, eps)
        full.append(both[0])
        semi.append(both[1])
        if known is not None:
            v = known.mean[k]
            without, with_stop = full_and_semi(model, s, v)
            field.append(without - with_stop)
            mean.append(with_stop)
            noise.append(noise_term(model, s, s.v_c - v))
    F, G = torch.stack(full), torch.stack(semi)
    gap = middle = F - G
    own, expected = G, {}
    if known is not None and not p:
        terms = torch.stack(field), torch.stack(noise)
        middle, own = terms[0] + terms[1], torch.stack(mean)
        expected = {"_field": unbiased(terms[0], terms[0]), "_noise": unbiased(terms[1], terms[1])}
    size2, signal = unbiased(middle, middle), unbiased(own, own)
    expected |= {
        "": size2,
        "_ratio": size2 / signal,
        "_cosine": unbiased(middle, own) / (size2 * signal) ** 0.5 if size2 * signal > 0 else float("nan"),
        "_variance": covariance_trace(G + gap) - covariance_trace(G),
    }
    quantities = found.loc[found["quantity"].str.startswith("semi_gradient_gap"), "quantity"]
    assert sorted(quantities) == sorted(f"semi_gradient_gap{which}" for which in expected)
    for which, truth in expected.items():
        assert value(found, which)["value"] == pytest.approx(truth, rel=1e-8, nan_ok=which == "_cosine"), which


def test_the_theorem_given_x_t() -> None:
    """E[D | x_t] over v_c = v + v', Cov v' = s^2 / s_t^2 I, is the field's term plus the gradient of tr(J Sigma J^T).

    D is quadratic in v', so the mean over the four points +-sqrt(2 sigma^2) e_i is the mean over the posterior.
    """
    model, std = network(), 0.8
    draws = Draws(load_data(f"gaussian:2,0.3,{std}"), parse_times("uniform"), 0)
    for s in samples_of(draws, 5):
        v, sigma = s.vhat, std / float((1 - s.t) ** 2 * std**2 + s.t**2) ** 0.5
        draws_of_v = [v + sign * 2**0.5 * sigma * basis for basis in torch.eye(2).double() for sign in (-1, 1)]
        both = [full_and_semi(model, s, v_c) for v_c in draws_of_v]
        total = torch.stack([full - semi for full, semi in both]).mean(0)
        full, semi = full_and_semi(model, s, v)
        spread = sum(noise_term(model, s, sigma * basis) for basis in torch.eye(2).double())
        torch.testing.assert_close(total, full - semi + spread, rtol=1e-9, atol=1e-9)


def test_the_two_ways_agree_and_the_known_one_is_less_noisy() -> None:
    """The plain mean over many samples, and that of the two terms."""
    model, options = network(), {"samples": 8192, "times": "uniform"}
    known, unknown = (gap_of(model, data, **options) for data in (KNOWN, Unknown(KNOWN)))
    for which in ("", "_ratio"):
        one, other = value(known, which), value(unknown, which)
        assert abs(one["value"] - other["value"]) <= 4 * other["std_error"]
        assert one["std_error"] < other["std_error"] < 0.3 * other["value"], "too noisy to tell"


def test_comparing_the_full_gradient_gives_the_same_gap() -> None:
    """Modular MeanFlow with its derivative wholly outside the stop-gradient is the full gradient."""
    model, options = network(), {"samples": SAMPLES, "times": "uniform", "by_layer": False, "dtype": torch.float64}
    specs = ["meanflow", "modular_meanflow:1"]
    compared = measure(model, Unknown(KNOWN), tables=["compare"], estimators=specs, **options)["compare"]  # type: ignore[arg-type]
    found = gap_of(model, Unknown(KNOWN))
    bias = row(compared, estimator=specs[1], quantity="bias2", layer="all")
    assert value(found, "")["value"] == pytest.approx(bias["value"], rel=1e-9)
    variances = [row(compared, estimator=name, quantity="variance", layer="all")["value"] for name in specs]
    assert value(found, "_variance")["value"] == pytest.approx(variances[1] - variances[0], rel=1e-9)


def test_differences_in_place_of_derivatives_give_the_same() -> None:
    exact, plain = (gap_of(network(), KNOWN, derivative=which) for which in ("jvp", "difference"))
    for which in NAMES:
        assert value(plain, which)["value"] == pytest.approx(value(exact, which)["value"], rel=1e-5), which


# -- closed form --------------------------------------------------------------------------------------------------


class Affine(nn.Module):
    """u = (a + b t) x + c: J = ((t-r) (a + b t) - 1) I, and every moment over Gaussian data in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.tensor(value).double()) for value in (0.4, -0.7, 0.2))

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return (self.a + self.b * t[:, None]) * x + self.c


DIM, MEAN, STD = 3, 0.7, 1.3
TIMES = [(0.2, 0.9), (0.0, 0.5), (0.1, 1.0)]


class Truth:
    """At one (r, t), gradients in (a, b, c) of the two terms, and MeanFlow's own."""

    def __init__(self, r: float, t: float) -> None:
        a, b, c, gap = 0.4, -0.7, 0.2, t - r
        s2 = (1 - t) ** 2 * STD**2 + t**2
        alpha, k = (t - (1 - t) * STD**2) / s2, a + b * t
        # with y = x - (1-t) m: x = y + (1-t) m, v = alpha y - m, and rho = p y + q
        x, v = np.array([1, (1 - t) * MEAN]), np.array([alpha, -MEAN])
        rho = k * x + np.array([0, c]) + gap * (k * v + b * x) - v

        def mean(left: np.ndarray) -> float:
            """E of the product of `left` with rho, over coordinates, E y^2 = s2."""
            return float(DIM * (left[0] * rho[0] * s2 + left[1] * rho[1]))

        self.field = 2 * gap * np.array([mean(v), mean(t * v + x), 0])
        jacobi = gap * k - 1
        self.noise = 2 * DIM * gap * jacobi * STD**2 / s2 * np.array([1, t, 0])
        self.semi = 2 * np.array([mean(x), t * mean(x), mean(np.array([0, 1]))])
        total = self.field + self.noise
        size2, signal = total @ total, self.semi @ self.semi
        self.quantities = {
            "": size2,
            "_field": self.field @ self.field,
            "_noise": self.noise @ self.noise,
            "_ratio": size2 / signal,
            "_cosine": total @ self.semi / np.sqrt(size2 * signal),
        }


@pytest.mark.parametrize(("r", "t"), TIMES)
def test_closed_form(r: float, t: float) -> None:
    found = gap_of(Affine(), load_data(f"gaussian:{DIM},{MEAN},{STD}"), times=f"point:{r},{t}", samples=8192)
    for which, truth in Truth(r, t).quantities.items():
        one = value(found, which)
        assert abs(one["value"] - truth) <= 4 * one["std_error"], (which, one["value"], truth)
        assert one["std_error"] < 0.15 * abs(truth) and one["status"] == "ok", which


@cache
def covered(runs: int = 300, n: int = 512) -> dict[str, tuple[float, float]]:
    """Quantity -> share of 95 % intervals that hold the truth, mean estimate over truth, in the affine model."""
    r, t = TIMES[0]
    rng, gap, model = np.random.default_rng(0), t - r, Affine()
    a, b, c = (p.item() for p in model.parameters())
    x0 = MEAN + STD * rng.standard_normal((runs, n, DIM))
    x1 = rng.standard_normal((runs, n, DIM))
    x, v_c, k = (1 - t) * x0 + t * x1, x1 - x0, a + b * t
    s2 = (1 - t) ** 2 * STD**2 + t**2
    v = (t - (1 - t) * STD**2) / s2 * (x - (1 - t) * MEAN) - MEAN

    def e(velocity: np.ndarray) -> np.ndarray:
        return k * x + c + gap * (k * velocity + b * x) - velocity

    def pulled(tangent: np.ndarray, dt: float, cotangent: np.ndarray) -> np.ndarray:
        """2 (t-r) d_theta(du/dx tangent + du/dt dt)^T cotangent."""
        parts = [(tangent * cotangent).sum(-1), ((t * tangent + dt * x) * cotangent).sum(-1), np.zeros((runs, n))]
        return 2 * gap * np.stack(parts, -1)

    def semi(velocity: np.ndarray) -> np.ndarray:
        own = e(velocity)
        return 2 * np.stack([(x * own).sum(-1), t * (x * own).sum(-1), own.sum(-1)], -1)

    columns = [semi(v_c), semi(v), pulled(v_c, 1, e(v_c)), pulled(v, 1, e(v)), pulled(v_c - v, 0, e(v_c) - e(v))]
    gradients = torch.as_tensor(np.stack(columns))  # [C, runs, n, 3]
    of_everything = gradients.flatten(1, 2)
    both = of_everything[0] + of_everything[2]
    truth = Truth(r, t).quantities | {"_variance": covariance_trace(both) - covariance_trace(of_everything[0])}
    cells, found = one_cell(n), {name: [] for name in truth}
    for run in range(runs):
        moments = sum_layers(accumulated(gradients[:, run], 1, cells).moments[0]).replicates()
        for quantity, estimate in gap_statistics(moments, 0, 1, [2, 3, 4]).items():
            found[quantity.removeprefix("semi_gradient_gap")].append(estimate)
    return {which: _hits(estimates, truth[which]) for which, estimates in found.items()}


def _hits(estimates: list[Estimate], truth: float) -> tuple[float, float]:
    hits = [bool(e.low <= truth <= e.high) for e in estimates]
    return float(np.mean(hits)), float(np.mean([e.value for e in estimates]) / truth)


@pytest.mark.parametrize("which", NAMES)
def test_intervals_cover(which: str) -> None:
    """Nominal level 95 %, from 512 samples."""
    hits, ratio = covered()[which]
    assert 0.91 <= hits <= 0.985
    assert ratio == pytest.approx(1, abs=0.05)


# -- cells, layers, what cannot be asked for ----------------------------------------------------------------------


def test_layers_add_up_and_cells_are_there() -> None:
    found = gap_of(network(), KNOWN, by_layer=True, bins=(1, 2), samples=256)
    gaps = rows(found, quantity="semi_gradient_gap")
    whole = gaps[gaps["t_low"].isna()]
    layers = whole[whole["layer"] != "all"]["value"]
    assert len(layers) == 3
    assert layers.sum() == pytest.approx(whole[whole["layer"] == "all"]["value"].item(), rel=1e-9)
    assert set(gaps["t_low"].dropna()) == {0, 0.5} and set(gaps["estimator"]) == {"meanflow"}


def test_no_gap_where_r_equals_t() -> None:
    found = gap_of(network(), KNOWN, times="point:0.5,0.5", samples=128)
    for which in ("", "_field", "_noise", "_variance"):
        assert value(found, which)["value"] == 0
    assert {value(found, which)["status"] for which in ("_ratio", "_cosine")} == {"degenerate_control"}


def test_only_where_asked_for_and_only_with_meanflow() -> None:
    options = {"tables": ["variance"], "samples": 64, "estimators": ["self_tangent"]}
    plain = measure(network().float(), KNOWN, **options)["variance"]  # type: ignore[arg-type]
    assert not plain["quantity"].str.startswith("semi_gradient_gap").any()
    with pytest.raises(InputError, match="add --estimator meanflow"):
        measure(network().float(), KNOWN, extras=["semi_gradient_gap"], **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Did you mean 'semi_gradient_gap'"):
        measure(network().float(), KNOWN, extras=["semi_gradient"], **options)  # type: ignore[arg-type]
