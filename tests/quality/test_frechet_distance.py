"""Frechet distance: scipy's matrix root, closed forms, influences, and intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

import mfdiag
from mfdiag.gradients.intervals import Estimate
from mfdiag.quality import reference as reference_module
from mfdiag.quality.metrics import Reference
from mfdiag.quality.metrics.frechet_distance import METRIC


def distance(x: np.ndarray, y: np.ndarray, whole: bool = True) -> Estimate:
    """Samples x and data y, [B, n, d] each."""
    assert METRIC.pooled is not None
    return METRIC.pooled(Reference(torch.as_tensor(y), whole, x.shape[0] * x.shape[1], seed=0))(torch.as_tensor(x))


def slowly(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> float:
    """By scipy's square root of C C_r; `weights` are those of x, in place of the sample covariance's n - 1."""
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    mean, c = x.mean(0), np.atleast_2d(np.cov(x.T))
    if weights is not None:
        mean, c = weights @ x, np.atleast_2d(np.cov(x.T, aweights=weights, ddof=0)) * len(x) / (len(x) - 1)
    c_r = np.atleast_2d(np.cov(y.T))
    root = np.real(linalg.sqrtm(c @ c_r))
    return float(((mean - y.mean(0)) ** 2).sum() + np.trace(c + c_r - 2 * root))


def correlated(seed: int, b: int, n: int, dim: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(b, n, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_scipys_matrix_root(dim: int) -> None:
    x, y = correlated(0, 4, 10, dim), correlated(1, 1, 30, dim)
    assert float(distance(x, y).value) == pytest.approx(slowly(x, y), rel=1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), shift=st.floats(-3, 3), scale=st.floats(0.1, 3))
def test_shift_and_scale_of_the_same_points(seed: int, shift: float, scale: float) -> None:
    """|shift|^2 + (scale - 1)^2 tr C, about the mean."""
    y = correlated(seed, 1, 24, 3)
    mean = y.mean((0, 1))
    x = mean + shift + scale * (y - mean)
    trace = float(np.trace(np.cov(y[0].T)))
    expected = 3 * shift**2 + (scale - 1) ** 2 * trace
    assert float(distance(x.reshape(4, 6, 3), y).value) == pytest.approx(expected, rel=1e-7, abs=1e-7 * (1 + trace))


def test_a_singular_covariance() -> None:
    """Features that never vary, or fewer points than dimensions, are no obstacle."""
    flat = np.concatenate([correlated(0, 4, 9, 2), np.zeros((4, 9, 1))], axis=2)
    whole = np.concatenate([correlated(1, 1, 20, 2), np.ones((1, 20, 1))], axis=2)
    estimate = distance(flat, whole)
    assert float(estimate.value) == pytest.approx(slowly(flat[..., :2], whole[..., :2]) + 1, rel=1e-6)
    assert np.isfinite(estimate.std_error)
    assert np.isfinite(distance(correlated(0, 4, 2, 12), correlated(1, 1, 5, 12)).value)


@pytest.mark.parametrize("dim", [1, 3])
def test_standard_error_is_that_of_numerical_influences(dim: int) -> None:
    x, y = correlated(0, 4, 40, dim), correlated(1, 5, 30, dim)

    def influences(own: np.ndarray, other: np.ndarray) -> np.ndarray:
        b, n = own.shape[:2]
        step, influences = 1e-5, []
        for k in range(b):
            weights = np.full((b, n), (1 - step) / (b * n))
            weights[k] += step / n
            influences.append((slowly(own, other, weights.ravel()) - slowly(own, other)) / step)
        return np.array(influences)

    mine, theirs = influences(x, y), influences(y, x)
    assert float(distance(x, y.reshape(1, -1, dim)).std_error) == pytest.approx(mine.std(ddof=1) / 2, rel=2e-2)
    both = (mine.var(ddof=1) / 4 + theirs.var(ddof=1) / 5) ** 0.5
    assert float(distance(x, y, whole=False).std_error) == pytest.approx(both, rel=2e-2)


def test_intervals_cover_the_distance_of_gaussians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_module, "_DRAWN_POINTS", 2**10)
    hits, seeds, truth = 0, 40, 2 * 0.2**2 + 2 * 0.3**2
    for seed in range(seeds):
        prepared = mfdiag.prepare_quality("gaussian:2,0,1", metrics=["frechet_distance"], samples=1024, seed=seed)
        row = prepared.measure(lambda z: 0.2 + 1.3 * z).iloc[0]
        hits += row.ci_low <= truth <= row.ci_high
    assert 34 <= hits <= 40, hits
