"""Standard errors and intervals: closed forms, and coverage measured over replications (one group each)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import accumulated, one_cell
from scipy import stats

from mfdiag.gradients.moments import Estimate, Moments, jackknife, positive_jackknife, scalar_replicates

REPEATS = 800
# 95 % intervals are asked to cover at least 90 % of the time, within two binomial standard errors of 800 replications
LEAST = 0.90 - 2 * (0.9 * 0.1 / REPEATS) ** 0.5


@pytest.mark.parametrize("size", [1, 7])
def test_mean_of_equal_blocks_has_the_textbook_error(size: int) -> None:
    blocks = 32
    values = np.random.default_rng(0).lognormal(size=(blocks * size, 3))
    replicates, count = scalar_replicates(values, np.repeat(np.arange(blocks), size), blocks)
    actual = jackknife(replicates, count)
    means = values.reshape(blocks, size, 3).mean(1)
    error = means.std(0, ddof=1) / blocks**0.5
    np.testing.assert_allclose(actual.value, values.mean(0))
    np.testing.assert_allclose(actual.std_error, error)
    np.testing.assert_allclose(actual.high - actual.value, stats.t.ppf(0.975, blocks - 1) * error)
    np.testing.assert_allclose(actual.value - actual.low, actual.high - actual.value)
    assert actual.n_samples == len(values)


def test_mean_of_unequal_blocks_weighs_their_sizes() -> None:
    """The error of a weighted mean of block means: over many replications it is the true one."""
    sizes = np.random.default_rng(1).integers(1, 12, size=40)
    block = np.repeat(np.arange(40), sizes)
    values = np.random.default_rng(0).normal(size=(len(block), 4000))
    actual = jackknife(*scalar_replicates(values, block, 40))
    assert np.mean(actual.std_error**2) == pytest.approx(1 / len(block), rel=0.02)


def test_empty_blocks_do_not_count() -> None:
    values, block = np.arange(12.0), np.repeat([0, 2, 5], 4)
    replicates, count = scalar_replicates(values, block, 8)
    np.testing.assert_allclose(
        replicates, [values.mean(), values[4:].mean(), np.delete(values, slice(4, 8)).mean(), values[:8].mean()]
    )
    np.testing.assert_array_equal(count, [4, 4, 4])


def test_one_block_has_no_error() -> None:
    actual = jackknife(np.array([[2.0], [np.nan]]), np.array([5]))
    assert actual.value == 2 and np.isnan([actual.std_error, actual.low, actual.high]).all()


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(2.0, 4.0, (0.25, 0.5)), (-1.0, 4.0, (0.25, np.inf)), (-4.0, -2.0, (-0.5, -0.25))]
)
def test_inverse_turns_the_interval_around(low: float, high: float, expected: tuple[float, float]) -> None:
    middle = (low + high) / 2
    actual = Estimate(*map(np.array, (middle, 0.5, low, high)), 9).inverse()
    assert actual.value == 1 / middle and (actual.low, actual.high) == expected and actual.n_samples == 9
    assert actual.std_error == pytest.approx(0.5 / middle**2)


def moments_of(values: np.ndarray, groups: int = REPEATS) -> Moments:
    """Moments of values [groups, K, n, d]."""
    cells = one_cell(values.shape[2])
    return accumulated(torch.as_tensor(values).flatten(0, 1), groups, cells).moments[0]["w"].replicates()


def coverage(estimate: Estimate, truth: float) -> float:
    assert estimate.value.shape == (REPEATS,)
    covered = float(np.mean((estimate.low <= truth) & (truth <= estimate.high)))
    print(f"covers {covered:.1%} of {REPEATS}")
    return covered


def products(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Products of two normals (kurtosis 9), and their variance."""
    return rng.normal(size=shape) * rng.normal(size=shape), 1.0


def lognormals(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """exp of N(0, 0.5^2) (kurtosis 8.9), and their variance."""
    return rng.lognormal(0, 0.5, shape), (np.exp(0.25) - 1) * np.exp(0.25)


LAWS = pytest.mark.parametrize("law", [products, lognormals], ids=["product", "lognormal"])
Law = Callable[[np.random.Generator, tuple[int, ...]], tuple[np.ndarray, float]]


@LAWS
def test_coverage_of_a_mean(law: Law) -> None:
    values, _ = law(np.random.default_rng(0), (1024, REPEATS))
    truth = 0.0 if law is products else np.exp(0.125)
    covered = coverage(jackknife(*scalar_replicates(values, one_cell(1024).block, 64)), truth)
    assert LEAST <= covered <= 0.98


@LAWS
@pytest.mark.parametrize("spread", [jackknife, positive_jackknife])
def test_coverage_of_a_variance(law: Law, spread: Callable[..., Estimate]) -> None:
    values, variance = law(np.random.default_rng(1), (REPEATS, 1, 1024, 2))
    moments = moments_of(values)
    covered = coverage(spread(moments.S[:, :, 0, 0], moments.count), 2 * variance)
    assert LEAST <= covered <= 0.98


@pytest.mark.parametrize("samples", [256, 1024])
def test_the_log_scale_covers_better_where_tails_are_heavy(samples: int) -> None:
    """Variance of exp of N(0, 0.8^2), kurtosis 34: the plain interval misses above, its logarithm's less often."""
    values = np.random.default_rng(7).lognormal(0, 0.8, (REPEATS, 1, samples, 1))
    truth = (np.exp(0.64) - 1) * np.exp(0.64)
    moments = moments_of(values)
    plain, log = (coverage(f(moments.S[:, :, 0, 0], moments.count), truth) for f in (jackknife, positive_jackknife))
    assert plain < log <= 0.98


def test_a_positive_quantity_keeps_its_value_and_a_positive_interval() -> None:
    replicates = np.array([[3.0, 1.0], [0.5, 1.1], [9.0, -0.2], [1.0, 1.0]])
    count = np.array([4, 4, 4])
    actual, plain = positive_jackknife(replicates, count), jackknife(replicates, count)
    np.testing.assert_array_equal(actual.value, plain.value)
    log = jackknife(np.log(replicates[:, 0]), count)
    assert plain.low[0] < 0 < actual.low[0] and (actual.low[0], actual.high[0]) == pytest.approx(
        (np.exp(log.low), np.exp(log.high))
    )
    for name in ("low", "high", "std_error"):
        assert getattr(actual, name)[1] == getattr(plain, name)[1], "a replicate below zero has no logarithm"


def test_coverage_of_a_squared_mean() -> None:
    mean = np.array([0.2, -0.1, 0.0])
    values = products(np.random.default_rng(2), (REPEATS, 1, 1024, 3))[0] + mean
    moments = moments_of(values)
    covered = coverage(jackknife(moments.M[:, :, 0, 0], moments.count), mean @ mean)
    assert LEAST <= covered <= 0.98


@pytest.mark.parametrize("dim", [1, 2, 3, 30])
def test_coverage_of_a_squared_mean_at_zero(dim: int) -> None:
    """A degenerate U-statistic: n M / s^2 -> Q - d with Q chi-squared on d (effective) dimensions, and the jackknife's
    squared error, 4 Q, is twice the variance on average. The interval holds 0 where sqrt(Q) > sqrt(t^2 + d) - t: 81 %
    in one dimension, 94 % in three, 99 % in thirty; what misses lies below zero, and claims no mean that is not there.
    """
    values = products(np.random.default_rng(3), (REPEATS, 1, 512, dim))[0]
    moments = moments_of(values)
    actual = jackknife(moments.M[:, :, 0, 0], moments.count)
    t = stats.t.ppf(0.975, 63)
    expected = stats.chi2.sf((np.sqrt(t**2 + dim) - t) ** 2, dim)
    assert coverage(actual, 0.0) >= expected - 2 * (expected * (1 - expected) / REPEATS) ** 0.5
    assert np.mean(actual.low > 0) <= 0.01
    assert 1.5 <= np.mean(actual.std_error**2) / actual.value.var() <= 2.5


def test_coverage_of_a_coefficient() -> None:
    """beta* = -S_0b / S_bb of G_b = x, G_0 = -0.8 x + y, with heavy-tailed x and y."""
    rng = np.random.default_rng(4)
    control, rest = (products(rng, (REPEATS, 1024, 2))[0] for _ in range(2))
    moments = moments_of(np.stack([0.3 - 0.8 * control + rest, control], 1))
    covered = coverage(jackknife(-moments.S[:, :, 0, 1] / moments.S[:, :, 1, 1], moments.count), 0.8)
    assert LEAST <= covered <= 0.98


@pytest.mark.parametrize(("mean", "dim"), [(0.25, 2), (0.02, 8)], ids=["clear", "lost_in_noise"])
def test_coverage_of_a_noise_scale(mean: float, dim: int) -> None:
    """tr Cov / |mean|^2 through its reciprocal; where the mean is lost, intervals are open above and still cover."""
    values = products(np.random.default_rng(5), (REPEATS, 1, 1024, dim))[0] + mean
    moments = moments_of(values)
    actual = jackknife(moments.M[:, :, 0, 0] / moments.S[:, :, 0, 0], moments.count).inverse()
    assert coverage(actual, 1 / mean**2) >= LEAST
    unbounded = np.isinf(actual.high).mean()
    assert unbounded == 0 if mean == 0.25 else unbounded > 0.9
