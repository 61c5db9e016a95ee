"""The best mixture against a general-purpose minimiser, and what its algebra demands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from mfdiag.coefficients.mixture import mixture_weights


def random_form(k: int, rng: np.random.Generator, unbiased: bool = True) -> np.ndarray:
    root = rng.standard_normal((k, k + 2))
    if unbiased:
        root[0] = 0
    return root @ root.T


@settings(max_examples=30, deadline=None)
@given(k=st.integers(2, 5), n=st.sampled_from([0.0, 1.0, 30.0]), seed=st.integers(0, 999))
def test_weights_are_the_constrained_minimum(k: int, n: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    covariance, bias = random_form(k, rng, False), random_form(k, rng)
    whole = covariance + n * bias
    weights = mixture_weights(covariance, bias, n)
    assert weights.sum() == pytest.approx(1)
    slow = minimize(
        lambda w: w @ whole @ w,
        np.full(k, 1 / k),
        jac=lambda w: 2 * whole @ w,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(k)},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert weights @ whole @ weights <= slow.fun * (1 + 1e-9) + 1e-12
    np.testing.assert_allclose(weights, slow.x, atol=2e-3 * np.abs(weights).max())


def test_replicates_are_solved_one_by_one() -> None:
    rng = np.random.default_rng(0)
    pairs = [(random_form(4, rng, False), random_form(4, rng)) for _ in range(5)]
    stacked = mixture_weights(*(np.stack(forms) for forms in zip(*pairs, strict=True)), 2.0)
    np.testing.assert_allclose(stacked, [mixture_weights(*pair, 2.0) for pair in pairs])


def test_large_batches_want_the_unbiased_one() -> None:
    rng = np.random.default_rng(1)
    covariance, bias = random_form(3, rng, False), random_form(3, rng)
    assert mixture_weights(covariance, bias, 1e9) == pytest.approx([1, 0, 0], abs=1e-6)


def test_copies_share_their_weight() -> None:
    """A third estimator that is the second: its weight is split in two, the value is that of the two alone."""
    rng = np.random.default_rng(2)
    pair = random_form(2, rng, False)
    copied = pair[np.ix_([0, 1, 1], [0, 1, 1])]
    alone, shared = mixture_weights(pair, 0 * pair, 0), mixture_weights(copied, 0 * copied, 0)
    np.testing.assert_allclose(shared, [alone[0], alone[1] / 2, alone[1] / 2])
    rounded = copied + np.diag([0, 0, 1e-8 * copied[1, 1]])  # moments of float32
    np.testing.assert_allclose(mixture_weights(rounded, 0 * copied, 0), shared, rtol=1e-6)


def test_a_negative_estimate_of_a_bias_is_no_reward() -> None:
    covariance, bias = np.diag([1.0, 2.0]), np.diag([0.0, -0.1])
    np.testing.assert_allclose(mixture_weights(covariance, bias, 1e6), mixture_weights(covariance, 0 * bias, 0))
    assert np.isnan(mixture_weights(covariance, bias * np.nan, 1.0)).all()
    for spoiled in range(2):  # one replicate of two, its covariance or its bias
        stacked = [np.stack([covariance] * 2), np.stack([0 * bias] * 2)]
        stacked[spoiled][1, 1, 1] = np.nan
        weights = mixture_weights(*stacked, 1.0)
        assert np.isnan(weights[1]).all()
        np.testing.assert_allclose(weights[0], mixture_weights(covariance, 0 * bias, 1.0))
