"""The best linear mixture of several estimators of one mean, with weights that sum to 1 (docs/theory.md#mixture)."""

from __future__ import annotations

import numpy as np

__all__ = ["mixture_weights"]

_RELATIVE_RANK = 1e-6  # eigenvalues below this share of the largest are rounding errors of float32 moments


def mixture_weights(covariance: np.ndarray, bias: np.ndarray, n: float) -> np.ndarray:
    """Weights that minimize w^T (covariance / n + bias) w; for n = 0, the variance alone.

    An estimate of `bias` may have negative eigenvalues, which no matrix of inner products has. They are set to zero in
    this fit only. Where estimators coincide, the smallest weights are taken.

    Args:
        covariance: tr Cov(G_k, G_l), [..., K, K].
        bias: Inner products of the biases, [..., K, K]. The first estimator is the unbiased one: its row and column
            are 0.
        n: Batch size.

    Returns:
        Weights [..., K]; NaN where an input is not finite.
    """
    # w = (1 - sum z, z): G_0 + sum_k z_k D_k with D_k = G_k - G_0, and docs/theory.md#batch-aware with the controls
    # D_k: z = -(S_DD + n M_DD)^+ S_D0
    cross = covariance[..., 1:, :1] - covariance[..., :1, :1]
    inner = covariance[..., 1:, 1:] - covariance[..., 1:, :1] - covariance[..., :1, 1:] + covariance[..., :1, :1]
    finite = np.isfinite(inner).all((-2, -1)) & np.isfinite(bias).all((-2, -1))
    inner, cross, bias = (np.where(finite[..., None, None], a, 0) for a in (inner, cross, bias))
    values, vectors = np.linalg.eigh(bias[..., 1:, 1:])
    penalty = (vectors * np.maximum(values, 0)[..., None, :]) @ vectors.swapaxes(-1, -2)
    z = -(np.linalg.pinv(inner + n * penalty, rcond=_RELATIVE_RANK, hermitian=True) @ cross)[..., 0]
    weights = np.concatenate([1 - z.sum(-1, keepdims=True), z], -1)
    return np.where(finite[..., None], weights, np.nan)
