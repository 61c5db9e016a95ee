"""The best linear mixture of several estimators of one mean, with weights that sum to 1."""

from __future__ import annotations

import numpy as np

__all__ = ["mixture_weights"]

_SMALLEST = 1e-6  # of the largest eigenvalue: below it, a direction of float32 moments is rounding


def mixture_weights(covariance: np.ndarray, bias: np.ndarray, n: float) -> np.ndarray:
    """Weights w [..., K], sum 1, that minimise w (covariance/n + bias) w; the variance alone for n = 0.

    `covariance` [..., K, K] holds tr Cov(G_k, G_l), `bias` [..., K, K] the products of the biases, whose first row and
    column are 0: the first estimator is the unbiased one. An estimate of `bias` may have negative eigenvalues, which
    no products have; they are taken as 0 here, in the fit alone. Where estimators coincide, the smallest weights.
    """
    # w = (1 - sum z, z): G_0 + sum_k z_k D_k with D_k = G_k - G_0, and theory: c*_n = -(S_cc + n M_cc)^(-1) S_c0
    cross = covariance[..., 1:, :1] - covariance[..., :1, :1]
    inner = covariance[..., 1:, 1:] - covariance[..., 1:, :1] - covariance[..., :1, 1:] + covariance[..., :1, :1]
    finite = np.isfinite(inner).all((-2, -1)) & np.isfinite(bias).all((-2, -1))
    inner, cross, bias = (np.where(finite[..., None, None], a, 0) for a in (inner, cross, bias))
    values, vectors = np.linalg.eigh(bias[..., 1:, 1:])
    penalty = (vectors * np.maximum(values, 0)[..., None, :]) @ vectors.swapaxes(-1, -2)
    z = -(np.linalg.pinv(inner + n * penalty, rcond=_SMALLEST, hermitian=True) @ cross)[..., 0]
    weights = np.concatenate([1 - z.sum(-1, keepdims=True), z], -1)
    return np.where(finite[..., None], weights, np.nan)
