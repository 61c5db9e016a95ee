"""beta*_n and its interval: a closed form, a plain grid as twin, and coverage where the bias is lost in noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import accumulated, one_cell
from scipy import stats

from mfdiag.coefficients.batch_optimum import batch_optimum
from mfdiag.gradients.intervals import Estimate, jackknife, skewed_jackknife
from mfdiag.gradients.moments import Moments

REPEATS = 400
LEAST = stats.binom.ppf(0.001, REPEATS, 0.93) / REPEATS
MOST = stats.binom.ppf(0.999, REPEATS, 0.97) / REPEATS
SLOPE, NOISE = 0.8, 3.0  # G_0 = -0.8 G_b + rest


def moments(rng: np.random.Generator, samples: int, mean: float) -> Moments:
    """G_b of variance 12 in four dimensions, heavy in the tails, with |E G_b| = mean; G_0 = -0.8 G_b + noise."""
    control, rest = rng.standard_t(6, (2, samples, 4)) * (2 / 3) ** 0.5 * 3**0.5
    control = control + mean / 2
    pair = np.stack([-SLOPE * control + rest, control])
    return accumulated(torch.as_tensor(pair), 1, one_cell(samples)).moments[0]["w"].replicates()


def estimate(m: Moments, n: float) -> Estimate:
    S = m.S[:, 0]
    return batch_optimum(S[:, 0, 1], S[:, 1, 1], m.squared_mean(np.array([0.0, 1.0])), n)


@pytest.mark.parametrize("n", [1, 100, 10**6])
@pytest.mark.parametrize("mean", [0.0, 0.1, 0.3, 2.0], ids=["zero", "lost", "weak", "clear"])
def test_coverage(mean: float, n: int) -> None:
    truth = SLOPE / (1 + n * mean**2 / 12)
    rng = np.random.default_rng([int(100 * mean), n])
    estimates = [estimate(moments(rng, 512, mean), n) for _ in range(REPEATS)]
    covered = np.mean([e.low <= truth <= e.high for e in estimates])
    print(f"covers {covered:.1%}")
    # at M = 0 the bound M >= 0 is the truth itself: the interval may cover more often
    assert LEAST <= covered <= (MOST if mean > 0.1 else 1)
    assert all(e.low <= e.value <= e.high for e in estimates)


def test_an_open_critical_batch_opens_the_optimum() -> None:
    """Where M may be zero, beta*_n may be beta*_0 however large the batch is."""
    m = moments(np.random.default_rng(0), 512, 0.0)
    bias = m.squared_mean(np.array([0.0, 1.0]))
    assert bias.estimate().low < 0
    unlimited = skewed_jackknife(-m.S[:, 0, 0, 1] / m.S[:, 0, 1, 1], m.count)
    for n in (10, 10**4, 10**9):
        assert estimate(m, n).high == pytest.approx(float(unlimited.high), rel=0.05)


def test_without_bias_noise_it_is_the_closed_form() -> None:
    m = moments(np.random.default_rng(1), 4096, 2.0)
    S, M = m.S[0, 0], m.M[0, 0]
    for n in (1, 50, 10**5):
        assert estimate(m, n).value == pytest.approx(-S[0, 1] / (S[1, 1] + n * M[1, 1]))


def test_a_negative_squared_mean_counts_as_zero() -> None:
    m = next(m for m in (moments(np.random.default_rng(k), 512, 0.0) for k in range(50)) if m.M[0, 0, 1, 1] < 0)
    assert estimate(m, 10**6).value == pytest.approx(-m.S[0, 0, 0, 1] / m.S[0, 0, 1, 1])


@pytest.mark.parametrize("mean", [0.0, 0.3, 2.0])
def test_the_ends_are_those_of_a_fine_grid(mean: float) -> None:
    """The twin: every beta of a grid is tried on its own, with pseudo-values, covariances and skewness by numpy."""
    m, n = moments(np.random.default_rng(7), 640, mean), 300
    S, bias = m.S[:, 0], m.squared_mean(np.array([0.0, 1.0]))
    unlimited, ratio = -S[:, 0, 1] / S[:, 1, 1], bias.replicates / S[:, 1, 1]
    g = len(m.count)
    a, d = (g * x[0] - (g - 1) * x[1:] for x in (unlimited, ratio))
    ends = skewed_jackknife(unlimited, m.count)
    grid = np.linspace(min(0, ends.low), max(0, ends.high), 20_001)[:, None]
    pseudo = a - n * grid * d
    with np.errstate(divide="ignore", invalid="ignore"):
        implied = np.maximum((unlimited[0] / grid - 1) / n, 0)
        size = max(bias.replicates[0], 0) + S[0, 1, 1] / 640
        law = np.var(d, ddof=1) / g / (size / S[0, 1, 1]) * implied + bias.noise() / S[0, 1, 1] ** 2
        change = np.nan_to_num(grid**2 * n**2 * (law - np.var(d, ddof=1) / g))[:, 0]
    error = np.sqrt(pseudo.var(1, ddof=1) / g + change)
    t, skew = (unlimited[0] - grid * (1 + n * ratio[0]))[:, 0] / error, stats.skew(pseudo, axis=1) / g**0.5
    freedom = (g - 1) / (1 + np.maximum(stats.kurtosis(pseudo, axis=1), 0) / 2)
    inside = abs(t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6) <= stats.t.ppf(0.975, freedom)
    actual, step, held = estimate(m, n), float(grid[1, 0] - grid[0, 0]), grid[inside, 0]
    assert (float(actual.low), float(actual.high)) == pytest.approx((held[0], held[-1]), abs=1.01 * step)


@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_a_batch_of_almost_nothing_has_the_interval_of_the_unlimited_optimum(mean: float) -> None:
    m = moments(np.random.default_rng(8), 640, mean)
    expected = skewed_jackknife(-m.S[:, 0, 0, 1] / m.S[:, 0, 1, 1], m.count)
    actual = estimate(m, 1e-9)
    for name in ("value", "std_error", "low", "high"):
        assert float(getattr(actual, name)) == pytest.approx(float(getattr(expected, name)), rel=1e-6), name


@pytest.mark.parametrize("n", [1, 64])
def test_coverage_where_few_samples_carry_the_control(n: int) -> None:
    """G_b is 0 in three of four samples, and heavy in the tails in the others, as t - r makes the tangent's."""
    rng = np.random.default_rng(n)
    factor = (rng.random((REPEATS, 1024, 1)) < 0.25) * rng.random((REPEATS, 1024, 1)) ** 2
    control = factor * rng.standard_t(8, (REPEATS, 1024, 2)) + 0.1 * factor
    pair = np.stack([rng.standard_normal((REPEATS, 1024, 2)) - 3 * control, control], 1)
    m = accumulated(torch.as_tensor(pair).flatten(0, 1), REPEATS, one_cell(1024)).moments[0]["w"].replicates()
    # of factor: E f^2 = 1/4 / 5, E f = 1/4 / 3; of Student's t with 8 degrees: 8/6
    mean2 = 2 * (0.1 / 12) ** 2
    variance = 2 * (1 / 20) * (8 / 6 + 0.01) - mean2
    truth = 3 / (1 + n * mean2 / variance)
    weights, covered = np.array([0.0, 1.0]), 0
    for group in range(REPEATS):
        S = m.S[:, group]
        one = batch_optimum(S[:, 0, 1], S[:, 1, 1], m.squared_mean(weights, group), n)
        covered += bool(one.low <= truth <= one.high)
    print(f"covers {covered / REPEATS:.1%}")
    assert LEAST <= covered / REPEATS <= MOST


def test_the_standard_error_is_that_of_the_ratio() -> None:
    m = moments(np.random.default_rng(2), 640, 0.3)
    bias = m.squared_mean(np.array([0.0, 1.0]))
    for n in (1, 300):
        expected = jackknife(-m.S[:, 0, 0, 1] / (m.S[:, 0, 1, 1] + n * bias.replicates), m.count)
        assert float(estimate(m, n).std_error) == pytest.approx(float(expected.std_error))


def test_a_control_without_variance_has_the_interval_of_the_jackknife() -> None:
    m = moments(np.random.default_rng(2), 640, 0.3)
    bias = m.squared_mean(np.array([0.0, 1.0]))
    with np.errstate(all="ignore"):
        actual = batch_optimum(m.S[:, 0, 0, 1], np.zeros(len(m.S)), bias, 10)
    expected = jackknife(-m.S[:, 0, 0, 1] / (10 * bias.replicates), m.count)
    np.testing.assert_allclose(np.array(actual, float), np.array(expected, float))


def test_the_interval_does_not_depend_on_the_unit_of_the_gradients() -> None:
    m = moments(np.random.default_rng(4), 640, 0.3)
    bias, S = m.squared_mean(np.array([0.0, 1.0])), m.S[:, 0]
    for unit in (1e-8, 1e8):
        scaled = replace(
            bias, replicates=unit * bias.replicates, trace=unit * bias.trace, products=unit * bias.products
        )
        actual = batch_optimum(unit * S[:, 0, 1], unit * S[:, 1, 1], scaled, 300)
        np.testing.assert_allclose(np.array(actual, float), np.array(estimate(m, 300), float))
