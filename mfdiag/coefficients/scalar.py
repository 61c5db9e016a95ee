"""Closed forms of the optimal beta from scalar averages of residuals, without gradients: isotropic and diagonal.

All arrays are jackknife replicates [R] of averages over a cell of (r, t).
"""

from __future__ import annotations

import numpy as np

__all__ = ["diagonal_optimum", "isotropic_optimum"]


def isotropic_optimum(kappa: np.ndarray, sigma2d: np.ndarray, bias2: np.ndarray) -> np.ndarray:
    """beta* = kappa / (kappa + 1) * sigma2d / (sigma2d + bias2): Theorem 4 of arXiv 2605.09235.

    It minimizes beta^2 (kappa+1)^2 bias2 + sigma2d (kappa - beta (kappa+1))^2, assuming J = kappa I and Sigma = s^2 I
    (docs/theory.md#isotropic). It has a pole at kappa = -1, and is outside [0, 1] for negative kappa.

    Args:
        kappa: Signed or magnitude kappa (docs/theory.md#kappa), [R].
        sigma2d: tr Sigma, [R].
        bias2: |b|^2, [R].

    Returns:
        beta* [R], not clipped.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return kappa / (kappa + 1) * sigma2d / (sigma2d + bias2)


def diagonal_optimum(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """beta* [R] = E sum_i A_ii J_ii Sigma_ii / E sum_i A_ii^2 (Sigma_ii + b_i^2) (docs/theory.md#diagonal).

    One common beta that minimizes the sum over coordinates of the isotropic objective, with J_ii, Sigma_ii and b_i.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return numerator / denominator
