"""Optimal importance sampling of (r, t) over cells: the shares that minimise the variance of the weighted gradient."""

from __future__ import annotations

import numpy as np

__all__ = ["optimal_shares", "weighted_moment"]

# The objective is E_p[f(r, t)] with cell shares p_c. Pairs drawn with shares q_c, each with weight w_c = p_c / q_c,
# have the gradient w G, whose mean is that of G under p: sum_c q_c w_c E[G | c] = sum_c p_c E[G | c] = g. Hence, with
# m_c = E[|G|^2 | c],
#     Var_q = E_q|w G|^2 - |g|^2 = sum_c p_c^2 m_c / q_c - |g|^2,
# and by Cauchy and Schwarz sum_c p_c^2 m_c / q_c >= (sum_c p_c sqrt(m_c))^2, with equality for q_c ~ p_c sqrt(m_c).


def weighted_moment(trained: np.ndarray, drawn: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """E_q|w G|^2 [...] of pairs drawn with shares `drawn` [..., C], from E[|G|^2 | c] `moments` [..., C].

    `trained` [C] are the shares p of the objective; at `drawn` = `trained` this is E_p|G|^2.
    """
    met = trained > 0
    return (trained[met] ** 2 * moments[..., met] / drawn[..., met]).sum(-1)


def optimal_shares(trained: np.ndarray, moments: np.ndarray, floor: float) -> np.ndarray:
    """Shares q [..., C] of least variance, mixed with p: q = floor p + (1 - floor) q*, q* ~ p sqrt(m).

    The floor keeps weights p/q at most 1/floor; it costs less than a factor 1 / (1 - floor) of E_q|w G|^2, because
    q >= (1 - floor) q*.
    """
    best = trained * np.sqrt(moments)
    return floor * trained + (1 - floor) * best / best.sum(-1, keepdims=True)
