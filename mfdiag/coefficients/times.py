"""Optimal importance sampling of (r, t) over cells: the shares that minimize the variance of the weighted gradient.

The derivation is docs/theory.md#times-density.
"""

from __future__ import annotations

import numpy as np

__all__ = ["optimal_shares", "weighted_moment"]


def weighted_moment(trained: np.ndarray, drawn: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Second moment E_q|w G|^2 of the gradient when pairs are drawn with shares q and weighted by w = p / q.

    Args:
        trained: Shares p [C] of the cells in the objective.
        drawn: Shares q [..., C] with which the cells are drawn; at q = p the result is E_p|G|^2.
        moments: m_c = E[|G|^2 given cell c], [..., C].

    Returns:
        sum_c p_c^2 m_c / q_c, [...].
    """
    nonempty = trained > 0
    return (trained[nonempty] ** 2 * moments[..., nonempty] / drawn[..., nonempty]).sum(-1)


def optimal_shares(trained: np.ndarray, moments: np.ndarray, floor: float) -> np.ndarray:
    """Shares of least variance, mixed with those of the objective: q = floor p + (1 - floor) q*, q* ~ p sqrt(m).

    Args:
        trained: Shares p [C] of the cells in the objective.
        moments: m_c = E[|G|^2 given cell c], [..., C].
        floor: In (0, 1). Weights p/q are at most 1/floor. E_q|w G|^2 exceeds its minimum by less than the factor
            1 / (1 - floor), because q >= (1 - floor) q*.

    Returns:
        Shares q [..., C], which sum to 1.
    """
    # sum_c p_c^2 m_c / q_c >= (sum_c p_c sqrt(m_c))^2 by Cauchy and Schwarz, with equality for q_c ~ p_c sqrt(m_c)
    best = trained * np.sqrt(moments)
    return floor * trained + (1 - floor) * best / best.sum(-1, keepdims=True)
