"""Table `times`: Gaussian data with the exact model and one parameter, slow twins, and coverage of the intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import accumulated, covariance_trace, loss_gradient, one_cell, randomised, row, rows, samples_of
from torch import Tensor, nn

from mfdiag import measure
from mfdiag.coefficients.times import optimal_shares, weighted_moment
from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import load_data
from mfdiag.flow.density import DensityTimes, cell_numbers, cell_shares, density_cells
from mfdiag.flow.draw import Draws
from mfdiag.flow.seeds import normals, uniforms
from mfdiag.flow.time_sampler import TimeSampler
from mfdiag.flow.times import parse_times
from mfdiag.gradients.sample_pass import PassResult
from mfdiag.measures.parts.rows import Rows
from mfdiag.measures.parts.time_density import search
from mfdiag.measures.times import add_density_rows
from mfdiag.models.networks.gaussian import GaussianAverageVelocity
from mfdiag.models.networks.mlp import MLP

STD, BINS, TIMES = 0.5, (3, 3), "uniform:r_ne_t=0.7"


class Shift(nn.Module):
    """The exact average velocity of N(0, STD^2), plus a parameter that is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.exact = GaussianAverageVelocity(0.0, STD, (1,)).double()
        for name in ("mean", "std"):  # constants here
            value = getattr(self.exact, name).detach()
            delattr(self.exact, name)
            self.exact.register_buffer(name, value)
        self.shift = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.exact(x, r, t) + self.shift


def moment(r: np.ndarray, t: np.ndarray) -> np.ndarray:
    """E[|G|^2 | r, t] of `Shift`: G = 2 e with e = -rho v', v' of variance STD^2 / s_t^2."""
    s_r2, s_t2 = ((1 - x) ** 2 * STD**2 + x**2 for x in (r, t))
    return 4 * s_r2 / s_t2 * STD**2 / s_t2


def truth() -> tuple[np.ndarray, np.ndarray]:
    """Shares and second moments of the cells of BINS under TIMES, by the midpoint rule.

    Uniform on the triangle with density 2 for 0.7 of the pairs; for the others r = t, of density 2 t.
    """
    middle = (np.arange(600) + 0.5) / 600
    r, t = (grid.ravel() for grid in np.meshgrid(middle, middle))
    apart = 0.7 * 2 * np.heaviside(t - r, 0.5) / 600**2  # the squares on the line count half
    mass = np.append(apart, 0.3 * 2 * middle / 600)
    r, t = np.append(r - 1e-9, middle), np.append(t, middle)
    cell = cell_numbers(r, t, BINS)
    p = np.bincount(cell, mass)
    return p, np.bincount(cell, mass * moment(r, t)) / p


def table_of(model: nn.Module, data: str, samples: int, **options: Any) -> pd.DataFrame:
    options = {"times": TIMES, "bins": BINS, "dtype": torch.float64, **options}
    return measure(model, data, tables=["times"], samples=samples, **options)["times"]


def drawn(frame: pd.DataFrame, quantity: str = "drawn_share") -> np.ndarray:
    return rows(frame, quantity=quantity)["value"].to_numpy()


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_gaussian_truth(engine: str) -> None:
    p, m = truth()
    found = table_of(Shift(), f"gaussian:1,0,{STD}", 8192, engine=engine)
    np.testing.assert_allclose(drawn(found, "trained_share"), p, rtol=0, atol=1e-4)
    moments = rows(found, quantity="second_moment")
    assert (np.abs(moments["value"] - m) <= 4 * moments["std_error"]).all()
    best = optimal_shares(p, m, 0.1)
    shares = rows(found, quantity="drawn_share")
    assert (np.abs(shares["value"] - best) <= 4 * shares["std_error"] + 1e-3 * best).all()
    assert shares["value"].sum() == pytest.approx(1, abs=1e-12)
    whole = p @ m
    for quantity, expected in (
        ("predicted_gain", whole / weighted_moment(p, best, m)),
        ("unbounded_gain", whole / weighted_moment(p, optimal_shares(p, m, 0), m)),
        ("measured_gain", whole / weighted_moment(p, drawn(found), m)),
        ("variance", whole),
        ("weighted_variance", weighted_moment(p, drawn(found), m)),
    ):
        one = row(found, quantity=quantity)
        assert one["status"] == "ok" and abs(one["value"] - expected) <= 4 * one["std_error"], quantity
        assert one["std_error"] < 0.05 * expected, "too noisy to tell"
    assert whole / weighted_moment(p, best, m) > 1.1


def test_the_trial_is_a_measurement_of_variance() -> None:
    """Table `variance` under the density and under the trained times, on the samples of the next seed."""
    from mfdiag.gradients.sample_pass import PassSettings
    from mfdiag.measures import find_table
    from mfdiag.measures.run.measure_subject import measure_subject
    from mfdiag.measures.run.request import Request
    from mfdiag.measures.run.subject import Subject

    model = randomised(MLP(2, hidden=6, depth=1)).double()
    found = table_of(model, "two_moons", 1000, seed=4)
    base = parse_times(TIMES)
    density = DensityTimes("density:x", base, BINS, drawn(found, "trained_share"), drawn(found))
    for times, quantity in ((base, "variance"), (density, "weighted_variance")):
        subject = Subject(model, load_data("two_moons"), times)
        request = Request(
            estimators=["meanflow"],
            seed=5,
            by_layer=False,
            posterior="none",
            settings=PassSettings(1000, dtype=torch.float64),
        )
        expected = row(measure_subject(subject, find_table("variance"), request)["variance"], quantity="variance")
        one = row(found, quantity=quantity)
        for column in ("value", "std_error", "ci_low", "ci_high", "n_samples"):
            assert one[column] == pytest.approx(expected[column], rel=1e-9), (quantity, column)
    gain = row(found, quantity="measured_gain")["value"]
    assert gain == pytest.approx(drawn(found, "variance")[0] / drawn(found, "weighted_variance")[0])


def test_slow_twin() -> None:
    """Gradients one by one: the map, the gain it predicts, and the variance under the density."""
    model, data = randomised(MLP(2, hidden=4, depth=1)).double(), load_data("two_moons")
    found = table_of(model, "two_moons", 240, bins=(1, 1), floor=0.2)
    base = parse_times(TIMES)
    p = cell_shares(base, (1, 1))
    np.testing.assert_allclose(p, [0.7, 0.3], rtol=0, atol=1e-5)
    pilot = DensityTimes("density:x", base, (1, 1), p, np.sqrt(p) / np.sqrt(p).sum())
    draws = Draws(data, pilot, 0, False, False)
    samples = samples_of(draws, 240, model)
    gradients = torch.stack([loss_gradient(model, s) for s in samples])
    cell = np.array([int(s.r == s.t) for s in samples])
    norms = gradients.square().sum(1).numpy()
    m = np.array([norms[cell == c].mean() for c in (0, 1)])
    np.testing.assert_allclose(drawn(found, "second_moment"), m, rtol=1e-9)
    q = 0.2 * p + 0.8 * p * np.sqrt(m) / (p @ np.sqrt(m))
    np.testing.assert_allclose(drawn(found), q, rtol=1e-9)
    weighted = gradients * torch.tensor(p / pilot.drawn)[cell, None]
    mean2 = float(weighted.sum(0).square().sum() - weighted.square().sum()) / (240 * 239)
    gain = (p @ m - mean2) / ((p**2 / q) @ m - mean2)
    assert row(found, quantity="predicted_gain")["value"] == pytest.approx(gain, rel=1e-9)
    density = DensityTimes("density:x", base, (1, 1), p, q)
    samples = samples_of(Draws(data, density, 1, False, False), 240, model)
    rescaled = torch.stack([loss_gradient(model, s) * (p / q)[int(s.r == s.t)] for s in samples])
    assert row(found, quantity="weighted_variance")["value"] == pytest.approx(covariance_trace(rescaled), rel=1e-9)


def synthetic(samples: int, tail: float = 1.0) -> Callable[[TimeSampler, int], PassResult]:
    """Passes whose gradients are those of `Shift`, or of as large a second moment and heavier tails."""

    def run(times: TimeSampler, seed: int) -> PassResult:
        index, cells = np.arange(samples), one_cell(samples)
        r, t = times.sample(uniforms(seed, "times", index, times.width), index)
        z = normals(seed, "noise", index, 1)[:, 0]
        z = np.sign(z) * np.abs(z) ** tail
        weight = times.weight(r, t)
        gradient = torch.as_tensor((1 if weight is None else weight) * np.sqrt(moment(r, t)) * z)
        return PassResult(cells, accumulated(gradient[None, :, None], 1, cells), None, {}, r, t, None, False)

    return run


COMMON = {
    "run": "x",
    "checkpoint": "x",
    "checkpoint_sha256": None,
    "step": None,
    "dataset": "gaussian",
    "estimator": "meanflow",
    "proxy": "self",
    "weighting": "none",
    "times": TIMES,
    "seed": 0,
}


NORMAL = load_data("gaussian:1,0,1")


@pytest.mark.parametrize("tail", [1.0, 2.0])
def test_coverage(tail: float) -> None:
    """Intervals of both gains hold the truth: of the best shares, and of the shares that were found."""
    p, m = truth()
    best, whole, repeats = optimal_shares(p, m, 0.1), p @ m, 80
    hits = {"predicted_gain": 0, "measured_gain": 0}
    for k in range(repeats):
        found = search(synthetic(2048, tail), parse_times(TIMES), BINS, 0.1, 2 * k, NORMAL)
        for quantity, shares in (("predicted_gain", best), ("measured_gain", found.drawn[0])):
            one = found.overall[quantity]
            hits[quantity] += one.low <= whole / weighted_moment(p, shares, m) <= one.high
    least = 0.90 - 2 * (0.9 * 0.1 / repeats) ** 0.5
    assert all(count >= least * repeats for count in hits.values()), hits


def test_cells_with_few_samples_keep_nearly_their_share() -> None:
    bins = (6, 6)
    found = search(synthetic(2048), parse_times(TIMES), bins, 0.1, 0, NORMAL)
    few = found.map.counts < 64
    assert 0 < few.sum() < len(density_cells(bins)) == len(few)
    ratio = found.drawn[0] / found.trained
    np.testing.assert_allclose(ratio[few], ratio[few][0])
    assert 0.8 < ratio[few][0] < 1.2 and np.ptp(ratio[~few]) > 0.5
    table = Rows("times", COMMON)
    add_density_rows(table, found)
    status = rows(table.frame(), quantity="second_moment")["status"]
    assert ((status == "too_few_samples").to_numpy() == few).all()


def test_samplers_without_pairs_on_the_diagonal() -> None:
    """Cells that are never met have no share, no moment and no weight."""
    found = table_of(Shift(), f"gaussian:1,0,{STD}", 2048, times="restricted:0.3", bins=(2, 2))
    empty = drawn(found, "trained_share") == 0
    assert empty.sum() == 2 + 0 and (drawn(found)[empty] == 0).all()
    assert set(rows(found, quantity="second_moment")["status"][empty]) == {"nonfinite"}
    assert row(found, quantity="measured_gain")["value"] == pytest.approx(
        row(found, quantity="predicted_gain")["value"], abs=0.15
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"times": "grid:2,2"}, "one distribution for all samples"),
        ({"bins": None}, "pass --bins R,T"),
        ({"samples": 100, "bins": (9, 9)}, "raise --samples, or ask for fewer --bins"),
        (
            {"estimators": ["meanflow", "self_tangent"]},
            "takes one --estimator, but got meanflow, self_tangent",
        ),
        ({"estimators": ["terminal_velocity"]}, "--estimator terminal_velocity cannot be measured"),
        ({"floor": 0.0}, "--floor must be above 0 and at most 1, got 0"),
    ],
)
def test_bad_input(options: dict[str, Any], expected: str) -> None:
    samples = options.pop("samples", 256)
    with pytest.raises(InputError) as error:
        table_of(MLP(2, 4, 1), "two_moons", samples, dtype=torch.float32, **options)
    assert expected in str(error.value)
