"""The promise of 95 % intervals on MeanFlow gradients: a linear network on Gaussian data, many times over.

Every replication is a group of one pass, so that hundreds of them take seconds. benchmarks/coverage.py does the same
with whole commands and more networks.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import accumulated, one_cell, row, rows
from scipy import stats
from torch import nn

from mfdiag import load_data, measure
from mfdiag.coefficients.batch_optimum import batch_optimum
from mfdiag.coefficients.plane import ColumnLayout, gradient_quadratic
from mfdiag.flow.data.datasets import FiniteData
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import parse_times
from mfdiag.gradients.intervals import Estimate, skewed_jackknife
from mfdiag.gradients.moments import Moments
from mfdiag.measures.parts.concentration import FINITE_ERROR, heavy_data, tail_status, variance_tails

REPEATS, SAMPLES = 400, 256
BETA, BATCH, TIMES = 0.5, 4096, "uniform"
LAYOUT = ColumnLayout.of_plane(posterior_known=True, target=False)
# u = W (x, r, t, 1), trained on N(0.5, 0.7^2 I) with MeanFlow's loss
W = torch.tensor([[0.551, -0.025, -0.272, -0.046, -0.434], [-0.044, 0.551, -0.429, -0.036, -0.372]]).double()


def gradients(first: int, count: int) -> torch.Tensor:
    """Of e_0, e_b and their conditional means, [4, count, 10]: samples `first` and the ones after it."""
    draws = Draws(load_data("gaussian:2,0.5,0.7"), parse_times(TIMES), 0)
    batch = draws.batch(np.arange(first, first + count))
    posterior = draws.velocity_posterior(batch)
    assert posterior is not None
    gap, one = (batch.t - batch.r)[:, None], torch.ones(count, 1).double()
    features = torch.cat([batch.x_t, batch.r[:, None], batch.t[:, None], one], 1)
    at_t = torch.cat([batch.x_t, batch.t[:, None], batch.t[:, None], one], 1)
    along_x, along_t = W[:, :2], W[:, 3]

    def residual(v: torch.Tensor) -> torch.Tensor:
        return features @ W.T + gap * (v @ along_x.T + along_t) - v

    def control(v: torch.Tensor) -> torch.Tensor:
        return gap * ((at_t @ W.T - v) @ along_x.T)

    cotangents = torch.stack([e(v) for v in (batch.velocity, posterior.mean) for e in (residual, control)])
    return (2 * cotangents[..., None] * features[:, None]).flatten(2)


def moments_of(values: torch.Tensor, groups: int) -> Moments:
    """Moments of gradients [4, groups * n, P] of `groups` replications."""
    n = values.shape[1] // groups
    split = values.unflatten(1, (groups, n)).transpose(0, 1).flatten(0, 1)
    return accumulated(split, groups, one_cell(n)).moments[0]["w"].replicates()


def estimates(moments: Moments, group: int) -> dict[str, Estimate]:
    """What the tables report of one replication, by the functions that they use."""
    form, count, point = gradient_quadratic(moments, LAYOUT, group), moments.count, (np.array([BETA]), np.array([0.0]))
    assert form.W is not None
    variance, bias = form.S[:, 1, 1], moments.squared_mean(LAYOUT.bias[1], group)
    bias_at, curve = moments.squared_mean(np.array([1, BETA, 0]) @ LAYOUT.bias, group), form.at(form.S, *point)[:, 0]
    mean = moments.squared_mean(np.eye(4)[2], group)
    return {
        "variance": skewed_jackknife(form.S[:, 0, 0], count, nonnegative=True),
        "variance at beta": skewed_jackknife(curve, count, nonnegative=True),
        "conditional variance": skewed_jackknife(form.W[:, 0, 0], count, nonnegative=True),
        "mean_norm2": mean.estimate(),
        "snr": mean.estimate(denominator=form.S[:, 0, 0]),
        "bias2": bias_at.estimate(),
        "mse": bias_at.estimate(added=curve / BATCH),
        "optimum": skewed_jackknife(form.optimum(form.S, 0, (1,))[:, 0], count),
        "conditional_optimum": skewed_jackknife(form.optimum(form.W, 0, (1,))[:, 0], count),
        "optimum of a batch": batch_optimum(form.S[:, 0, 1], variance, bias, BATCH),
        "critical_batch": bias.estimate(denominator=variance).inverse(),
    }


class Results(NamedTuple):
    """Ends of the intervals by quantity, [REPEATS, 2], and the truth."""

    ends: dict[str, np.ndarray]
    truth: dict[str, float]


@pytest.fixture(scope="module")
def results() -> Results:
    moments = moments_of(gradients(0, REPEATS * SAMPLES), REPEATS)
    runs = [estimates(moments, group) for group in range(REPEATS)]
    whole = estimates(moments_of(gradients(10**6, 400_000), 1), 0)
    ends = {name: np.array([(float(run[name].low), float(run[name].high)) for run in runs]) for name in whole}
    return Results(ends, {name: float(estimate.value) for name, estimate in whole.items()})


def test_intervals_cover(results: Results) -> None:
    """Between 93 and 97 %, at the 99.9 % limits of the binomial distribution."""
    least, most = stats.binom.ppf(0.001, REPEATS, 0.93), stats.binom.ppf(0.999, REPEATS, 0.97)
    covered = {}
    for quantity, truth in results.truth.items():
        low, high = results.ends[quantity].T
        covered[quantity] = int(((low <= truth) & (truth <= high)).sum())
    assert all(least <= count <= most for count in covered.values()), covered


class Line(nn.Module):
    """The network whose gradients are written out above."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 2)
        with torch.no_grad():
            self.map.weight.copy_(W[:, :4])
            self.map.bias.copy_(W[:, 4])

    def forward(self, x: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.map(torch.cat([x, r[:, None], t[:, None]], 1))


def measured(tables: tuple[str, ...], samples: int, data: Any, **options: Any) -> pd.DataFrame:
    """Tables of the network, with few rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frames = measure(
            Line(),
            data,
            tables=tables,
            samples=samples,
            by_layer=False,
            beta=(0.0, 1.0),
            batch_sizes=(BATCH,),
            **options,
        )
    return pd.concat([frame.assign(table=name) for name, frame in frames.items()])


def test_what_this_test_covers_is_what_the_tables_say() -> None:
    found = measured(("sweep", "coefficient"), SAMPLES, "gaussian:2,0.5,0.7", times=TIMES, dtype=torch.float64)
    expected = estimates(moments_of(gradients(0, SAMPLES), 1), 0)
    keys = {"table": "coefficient", "form": "gradient", "role": "tangent"}
    for quantity, one in (
        ("optimum", row(found, quantity="optimum", batch_size=None, **keys)),
        ("optimum of a batch", row(found, quantity="optimum", batch_size=BATCH, **keys)),
        ("conditional_optimum", row(found, quantity="conditional_optimum", **keys)),
        ("critical_batch", row(found, quantity="critical_batch", **keys)),
        ("variance", row(found, table="sweep", quantity="variance", space="gradient", beta=0.0)),
    ):
        ends = expected[quantity].low, expected[quantity].high
        assert (one["ci_low"], one["ci_high"]) == pytest.approx(tuple(map(float, ends)), rel=1e-6), quantity


@pytest.mark.parametrize(("share", "few"), [(0.1, True), (0.6, False)])
def test_a_bias_that_few_samples_carry_is_not_ok(share: float, few: bool) -> None:
    """Where r = t there is no derivative and no bias: of 600 samples about 60 have one, or 360."""
    times = f"logit_normal:-0.4,1,{share}"
    found = measured(
        ("sweep", "coefficient", "compare"), 600, "gaussian:2,0.5,0.7", times=times, estimators=["self_tangent"]
    )
    bias = rows(found, quantity="bias2", space="gradient")
    assert row(bias, beta=0.0)["status"] == "ok", "no bias at all"
    expected = {"too_few_samples"} if few else {"ok"}
    assert {row(bias, beta=1.0)["status"]} == expected
    assert {row(found, table="compare", quantity="bias2", estimator="self_tangent")["status"]} == expected
    assert (row(found, quantity="critical_batch", role="tangent")["status"] == "ok") <= (not few)
    batches = rows(found, table="sweep", quantity="mse", space="gradient")
    assert (row(batches, beta=1.0)["status"] == "too_few_samples") == few


def test_the_residual_of_heavy_data_is_heavy() -> None:
    """Of Student's t with three degrees of freedom, the estimate of the residual's variance has no standard error."""
    points = np.random.default_rng(0).standard_t(3, (20_000, 2)).astype(np.float32)
    for data, status in ((points, "heavy_tail"), ("gaussian:2,0.5,0.7", "ok")):
        found = rows(measured(("sweep",), 2048, data, posterior="none"), space="output", quantity="variance")
        assert len(found) == 2 and set(found["status"]) == {status}


def test_a_run_that_misses_the_tail_of_its_data_says_so() -> None:
    """Of 40 runs of 600 residuals, which alone show it in some only; means and cosines are not ok either."""
    points = np.random.default_rng(0).standard_t(3, (20_000, 2)).astype(np.float32)
    rng = np.random.default_rng(1)
    residuals = points[rng.integers(0, 20_000, (40, 600))] + 2 * rng.standard_normal((40, 600, 2))
    norms = np.square(residuals).sum(2).T
    alone = [tail_status(one, FINITE_ERROR) for one in norms.T]
    assert 0 < alone.count(None) < 40
    assert set(variance_tails(norms, FiniteData("t3", points), FINITE_ERROR)) == {"heavy_tail"}
    assert set(variance_tails(norms, load_data("gaussian:2,0.5,0.7"), FINITE_ERROR)) == {*alone}
    nothing = np.stack([np.zeros(600), norms[:, alone.index(None)]], 1)
    assert variance_tails(nothing, FiniteData("t3", points), FINITE_ERROR).tolist() == [None, "heavy_tail"]
    variance = measured(("variance",), 600, points, posterior="none")
    for quantity in ("mean_norm2", "conflict_cosine"):
        assert set(rows(variance, quantity=quantity)["status"]) <= {"heavy_tail", "negative_estimate"}


@pytest.mark.parametrize("kind", ["t3", "pareto", "lognormal"])
def test_nothing_that_the_data_make_heavy_is_ok(kind: str) -> None:
    """In no table, but for numbers of the network's Jacobian, which is bounded, and for a bias that is exactly 0."""
    rng = np.random.default_rng(1)
    angle, radius = 2 * np.pi * rng.random(3000), rng.random(3000) ** (-1 / 3)
    points = {
        "t3": lambda: rng.standard_t(3, (3000, 2)),
        "pareto": lambda: radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1),
        "lognormal": lambda: rng.lognormal(0, 1.5, (3000, 2)),
    }[kind]()
    tables = ("sweep", "variance", "coefficient", "compare")
    heavy = measured(tables, 512, points.astype(np.float32), estimators=["self_tangent", "alpha_flow"])
    bounded = ("kappa", "jacobi", "divergence", "antisymmetric", "tail_index", "cost")
    heavy = heavy[~heavy["quantity"].str.startswith(bounded) & (heavy["value"] != 0) & (heavy["table"] != "samples")]
    trusted = heavy[heavy["status"] == "ok"]
    assert len(heavy) > 70 and not len(trusted), trusted[["table", "quantity", "estimator", "value"]]


def test_light_data_leave_comparisons_and_coefficients_of_the_residual_alone() -> None:
    light = measured(("coefficient", "compare"), 512, "gaussian:2,0.5,0.7", estimators=["self_tangent"])
    for quantity in ("sigma2d", "mixture_weight", "mixture_gain"):
        assert set(rows(light, quantity=quantity)["status"]) == {"ok"}, quantity
    compared = [rows(light, quantity="cosine"), *(rows(light, form=form) for form in ("matrix", "plane", "diagonal"))]
    assert all(len(one) and "heavy_tail" not in set(one["status"]) for one in compared)


@pytest.mark.parametrize(
    ("data", "heavy"),
    [
        ("gaussian:1,0,1", False),
        ("eight_gaussians", False),
        ("checkerboard", False),
        (np.random.default_rng(0).standard_t(3, (30_000, 4)), True),
        (np.random.default_rng(0).standard_t(8, (30_000, 4)), False),
        (np.concatenate([np.random.default_rng(0).standard_normal((20_000, 2)), np.full((20, 2), 100.0)]), True),
        (np.arange(12.0).reshape(6, 2), False),
    ],
    ids=["gaussian", "mixture", "checkerboard", "t3", "t8", "outliers", "six_points"],
)
def test_which_data_are_heavy(data: Any, heavy: bool) -> None:
    points = load_data(data) if isinstance(data, str) else FiniteData("points", data)
    assert heavy_data(points, FINITE_ERROR) == heavy
