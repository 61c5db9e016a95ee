"""Optimal shares: least of all, known in small cases, and what a floor can cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

from mfdiag.coefficients.times import optimal_shares, weighted_moment

POSITIVE = arrays(float, 5, elements=st.floats(1e-3, 1e3))


def test_two_cells() -> None:
    """p = (1/2, 1/2), m = (1, 9): q* = (1/4, 3/4), and (1/2 + 3/2)^2 = 4 against a mean of 5."""
    p, m = np.array([0.5, 0.5]), np.array([1.0, 9.0])
    best = optimal_shares(p, m, 0)
    np.testing.assert_allclose(best, [0.25, 0.75])
    assert weighted_moment(p, best, m) == pytest.approx(4) and weighted_moment(p, p, m) == pytest.approx(5)


def test_the_minimum_is_that_of_a_search() -> None:
    generator = np.random.default_rng(0)
    p, m = generator.dirichlet(np.ones(4)), generator.lognormal(0, 2, 4)

    def objective(logits: np.ndarray) -> float:
        shares = np.exp(logits - logits.max())
        return float(weighted_moment(p, shares / shares.sum(), m))

    solution = minimize(objective, np.zeros(4), method="BFGS", options={"gtol": 1e-9})
    best = optimal_shares(p, m, 0)
    assert weighted_moment(p, best, m) == pytest.approx(solution.fun, rel=1e-9)
    shares = np.exp(solution.x - solution.x.max())
    np.testing.assert_allclose(shares / shares.sum(), best, rtol=1e-4)


@given(p=POSITIVE, m=POSITIVE, other=POSITIVE, floor=st.floats(0.01, 1))
def test_least_bounded_and_little_lost(p: np.ndarray, m: np.ndarray, other: np.ndarray, floor: float) -> None:
    p, other = p / p.sum(), other / other.sum()
    best, mixed = optimal_shares(p, m, 0), optimal_shares(p, m, floor)
    least = weighted_moment(p, best, m)
    assert best.sum() == pytest.approx(1) and mixed.sum() == pytest.approx(1)
    assert least <= weighted_moment(p, other, m) * (1 + 1e-9)
    assert (p / mixed <= (1 + 1e-9) / floor).all()
    lost = weighted_moment(p, mixed, m) / least
    assert lost >= 1 - 1e-9 and lost * (1 - floor) <= 1 + 1e-9
    assert weighted_moment(p, mixed, m) <= weighted_moment(p, p, m) * (1 + 1e-9), "a mixture is no worse than p"


def test_replicates_and_cells_that_are_never_met() -> None:
    p = np.array([0.25, 0.75, 0.0])
    m = np.array([[4.0, 1.0, 7.0], [1.0, 1.0, 7.0]])
    best = optimal_shares(p, m, 0)
    np.testing.assert_allclose(best, [[0.4, 0.6, 0], [0.25, 0.75, 0]])
    np.testing.assert_allclose(weighted_moment(p, best, m), [(0.5 + 0.75) ** 2, 1])
