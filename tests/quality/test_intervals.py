"""Intervals cover as often as they say, for skewed values too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from mfdiag.quality.intervals import estimate_from_influence, estimate_from_replicates, estimate_from_shares


def test_replicates_cover_a_skewed_mean() -> None:
    draws = np.random.default_rng(0).exponential(size=(2000, 32))
    estimates = [estimate_from_replicates(values, 32) for values in draws]
    covered = np.mean([e.low <= 1 <= e.high for e in estimates])
    assert 0.92 < covered < 0.97


def test_influences_cover_a_statistic_of_two_samples() -> None:
    """The product of two means, whose influences are the other mean times each deviation."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        x, y = 1 + rng.normal(size=(32, 8)), 2 + rng.normal(size=(40, 5))
        blocks = [
            torch.as_tensor(y.mean() * (x - x.mean()).mean(1)),
            torch.as_tensor(x.mean() * (y - y.mean()).mean(1)),
        ]
        estimate = estimate_from_influence(x.mean() * y.mean(), x.mean() * y.mean(), blocks, x.size)
        hits += int(estimate.low <= 2 <= estimate.high)
    assert 930 <= hits <= 970


def test_the_interval_is_students() -> None:
    values = np.array([1.0, 2.0, 4.0])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    estimate = estimate_from_replicates(values, 3)
    assert (estimate.low, estimate.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert estimate.n_samples == 3 and estimate.value == pytest.approx(7 / 3)


@pytest.mark.parametrize("share", [0.5, 0.99, 0.998])
@pytest.mark.parametrize("spread", [0.0, 0.02])
def test_shares_cover_also_near_one(share: float, spread: float) -> None:
    """Hits among 64, whose chance varies from replicate to replicate where `spread` is above 0."""
    rng = np.random.default_rng(2)
    chances = rng.beta(share / spread, (1 - share) / spread, (1000, 32)) if spread else np.full((1000, 32), share)
    estimates = [estimate_from_shares(values, 32 * 64) for values in rng.binomial(64, chances) / 64]
    assert all(0 <= e.low <= e.value <= e.high + 1e-12 <= 1 + 2e-12 for e in estimates)
    assert 0.92 < np.mean([e.low <= share <= e.high for e in estimates]) < 0.98


def test_shares_of_independent_hits_have_wilsons_interval() -> None:
    values = np.array([0.0, 1.0] * 16)  # 32 hits and misses
    expected = stats.binomtest(16, 32).proportion_ci(method="wilson")
    estimate = estimate_from_shares(values, 32)
    assert (estimate.low, estimate.high) == (
        pytest.approx(expected.low, abs=0.01),
        pytest.approx(expected.high, abs=0.01),
    )
    everything = estimate_from_shares(np.ones(32), 320)
    assert 0.98 < everything.low < 0.99 and everything.high == pytest.approx(1)


def test_shares_of_few_replicates_have_students_quantile() -> None:
    """The ends p have (share - p)^2 = t^2 p (1 - p) / n, with n from the variance between replicates."""
    values = np.array([0.5, 0.7, 0.9])
    estimate = estimate_from_shares(values, 10_000)
    share, variance = 0.7, values.var(ddof=1) / 3
    for end in map(float, (estimate.low, estimate.high)):
        n = share * (1 - share) / variance
        assert (share - end) ** 2 == pytest.approx(stats.t.ppf(0.975, 2) ** 2 * end * (1 - end) / n)
    assert estimate.low < share < estimate.high
    assert estimate.n_samples == 10_000 and estimate.std_error == pytest.approx(variance**0.5)


def blocks_of(spread: float) -> list[torch.Tensor]:
    """Nine and five mean influences, so that Student's t has four degrees of freedom."""
    return [torch.linspace(-spread, spread, 9), torch.linspace(-spread, spread, 5)]


def variance_of(blocks: list[torch.Tensor]) -> float:
    return float(sum(part.double().var() / len(part) for part in blocks))


@pytest.mark.parametrize(("halved", "bias"), [(3.5, 0.5), (2.5, 0.0)], ids=["too_large", "too_small"])
@pytest.mark.parametrize(("value", "squared"), [(3.0, None), (0.0, 0.4), (-3.0, 0.4)])
def test_the_interval_of_a_biased_statistic_reaches_down(
    value: float, squared: float | None, halved: float, bias: float
) -> None:
    """Student's t on the smallest number of blocks; below it ends farther by a bias that is above zero."""
    blocks = blocks_of(0.2)
    estimate = estimate_from_influence(value, halved - 3 + value, blocks, 77, squared=squared)
    half = stats.t.ppf(0.975, 4) * variance_of(blocks) ** 0.5
    assert (estimate.low, estimate.high) == pytest.approx((value - half - bias, value + half))
    assert (estimate.value, estimate.n_samples) == (value, 77)
    assert estimate.std_error == pytest.approx(variance_of(blocks) ** 0.5)


@pytest.mark.parametrize("value", [0.4, 3.0])
@pytest.mark.parametrize("bias", [0.1, -0.05])
def test_the_interval_of_a_squared_distance_is_a_score_interval(value: float, bias: float) -> None:
    """Its ends are the theta with (value - bias - theta)^2 = t^2 (variance theta / value + (squared bias)^2)."""
    blocks, squared = blocks_of(0.2), 0.7
    estimate = estimate_from_influence(value, value + bias, blocks, 77, squared=squared)
    t = stats.t.ppf(0.975, 4)
    for end in map(float, (estimate.low, estimate.high)):
        distance = (value - bias - end) ** 2
        assert distance == pytest.approx(t**2 * (variance_of(blocks) * end / value + (squared * bias) ** 2))
    assert estimate.low < value - bias < estimate.high
    assert (estimate.value, estimate.n_samples) == (value, 77)


def test_a_squared_distance_below_its_bias_has_no_width() -> None:
    """No theta fits; what is left is the one that fits best."""
    blocks = blocks_of(0.01)
    estimate = estimate_from_influence(0.5, 1.5, blocks, 77, squared=0.0)
    assert estimate.low == estimate.high
    assert float(estimate.low) == pytest.approx(-0.5 + stats.t.ppf(0.975, 4) ** 2 * variance_of(blocks))
