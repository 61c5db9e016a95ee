"""Closed forms that need no gradient (theory, section 4): isotropic and diagonal, over replicates [R]."""

from __future__ import annotations

import numpy as np

__all__ = ["diagonal_optimum", "isotropic_optimum"]


def isotropic_optimum(kappa: np.ndarray, sigma2d: np.ndarray, bias2: np.ndarray) -> np.ndarray:
    """theory: beta*, isotropic form = kappa/(kappa+1) * s2d/(s2d + b2) (arXiv 2605.09235, Theorem 4).

    The minimiser of beta^2 (kappa+1)^2 b2 + s2d ((1-beta) kappa - beta)^2, for J = kappa I and Sigma = s2 I. It has a
    pole at kappa = -1 and leaves [0, 1] for negative kappa.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return kappa / (kappa + 1) * sigma2d / (sigma2d + bias2)


def diagonal_optimum(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """theory: beta*, diagonal form = E sum_i A_ii J_ii Sigma_ii / E sum_i A_ii^2 (Sigma_ii + b_i^2).

    The one beta that minimises the sum over coordinates of the isotropic form's M(beta), with J_ii, Sigma_ii, b_i.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return numerator / denominator
