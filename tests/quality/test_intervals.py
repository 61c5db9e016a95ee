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
