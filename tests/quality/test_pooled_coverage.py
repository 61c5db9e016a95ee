"""Intervals of metrics of all samples hold the truth as often as they say, also where the metric is biased."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ndtri

from mfdiag.quality.metrics import Reference, find_metric

RUNS = 400
QUANTILES = (np.arange(2000) + 0.5) / 2000
GAUSSIAN = ndtri(QUANTILES)
TWO_PEAKS = np.sort(np.concatenate([-1 + 0.4 * ndtri(QUANTILES[::2]), 1 + 0.4 * ndtri(QUANTILES[::2])]))
Draw = Callable[[np.random.Generator, int], np.ndarray]


def gaussian(shift: float, std: float) -> Draw:
    return lambda rng, n: shift + std * rng.normal(size=n)


def two_peaks(shift: float, std: float) -> Draw:
    return lambda rng, n: shift + np.where(rng.random(n) < 0.5, -1, 1) + std * rng.normal(size=n)


def runs(metric: str, draw: Draw, points: np.ndarray, n: int) -> np.ndarray:
    """Value, standard error and interval of each run, [RUNS, 4], on independent samples in 32 replicates."""
    pooled, rng = find_metric(metric).pooled, np.random.default_rng(7)
    assert pooled is not None
    compute = pooled(Reference(torch.as_tensor(points)[None, :, None], True, n, 0))
    samples = [torch.as_tensor(draw(rng, n)).view(32, -1, 1) for _ in range(RUNS)]
    return np.array([[float(number) for number in compute(x)[:4]] for x in samples])


def assert_covered(found: np.ndarray, truth: float) -> None:
    """Between 93 and 97 % of the intervals whose status is ok, at the binomial limits of 99.9 %."""
    value, _, low, high = found.T
    ok = value - low <= 2 * (high - value)
    hits, count = int(((low <= truth) & (truth <= high))[ok].sum()), int(ok.sum())
    assert count >= RUNS / 2
    assert stats.binom.ppf(0.001, count, 0.93) <= hits <= stats.binom.ppf(0.999, count, 0.97), (hits, count)


CASES = [
    pytest.param(gaussian(0.3, 1.5), GAUSSIAN, lambda q: 0.3 + 1.5 * ndtri(q), id="far"),
    pytest.param(gaussian(0.06, 1.1), GAUSSIAN, lambda q: 0.06 + 1.1 * ndtri(q), id="near"),
    pytest.param(two_peaks(0.1, 0.5), TWO_PEAKS, None, id="mixture"),
]


@pytest.mark.parametrize("n", [1024, 4096])
@pytest.mark.parametrize(("draw", "points", "quantile"), CASES)
def test_sliced_wasserstein(draw: Draw, points: np.ndarray, quantile: Callable | None, n: int) -> None:
    """The truth is the integral of |F^-1 - G^-1| on a fine grid, with F^-1 inverted numerically for a mixture."""
    q = (np.arange(200_000) + 0.5) / 200_000
    if quantile is None:
        x = np.linspace(-4, 4, 400_001)
        model = np.interp(q, (stats.norm.cdf(x, -0.9, 0.5) + stats.norm.cdf(x, 1.1, 0.5)) / 2, x)
    else:
        model = quantile(q)
    truth = float(np.abs(model - np.repeat(points, 100)).mean())
    assert_covered(runs("sliced_wasserstein", draw, points, n), truth)


@pytest.mark.parametrize("n", [1024, 4096])
@pytest.mark.parametrize(("shift", "std"), [(0.3, 1.5), (0.06, 1.03)])
def test_frechet_distance(shift: float, std: float, n: int) -> None:
    """In closed form: shift^2 + (std - s)^2 with the data's own s."""
    truth = shift**2 + (std - GAUSSIAN.std(ddof=1)) ** 2
    assert_covered(runs("frechet_distance", gaussian(shift, std), GAUSSIAN, n), truth)


def test_the_bias_is_what_halves_show() -> None:
    """How much longer the interval is below, against the mean distance of both halves by scipy."""
    x = np.random.default_rng(3).normal(0.1, 1.1, size=(32, 8, 1))
    metric = find_metric("sliced_wasserstein").pooled
    assert metric is not None
    estimate = metric(Reference(torch.as_tensor(GAUSSIAN)[None, :, None], True, 256, 0))(torch.as_tensor(x))
    halves = [stats.wasserstein_distance(half.ravel(), GAUSSIAN) for half in (x[::2], x[1::2])]
    assert 2 * float(estimate.value) - float(estimate.low + estimate.high) == pytest.approx(
        np.mean(halves) - float(estimate.value)
    )
    drawn = np.random.default_rng(4).normal(size=(32, 20, 1))
    estimate = metric(Reference(torch.as_tensor(drawn), False, 256, 0))(torch.as_tensor(x))
    pairs = ((x[::2], drawn[::2]), (x[1::2], drawn[1::2]))
    halves = [stats.wasserstein_distance(half.ravel(), data.ravel()) for half, data in pairs]
    assert 2 * float(estimate.value) - float(estimate.low + estimate.high) == pytest.approx(
        np.mean(halves) - float(estimate.value)
    )
