"""The plane (beta, gamma): variance, conditional variance, bias and their minimisers as quadratic forms.

Everything is a 3 x 3 matrix over (1, beta, gamma) with a leading axis of jackknife replicates (gradients/moments.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mfdiag.gradients.moments import Moments

__all__ = ["DEGENERATE", "ColumnLayout", "Quadratic", "degenerate", "gradient_quadratic", "output_quadratic"]

DEGENERATE = 1e-10  # of the uncontrolled variance: below it the control is constant up to rounding


@dataclass(frozen=True)
class ColumnLayout:
    """How (1, beta, gamma) act on a set of K cotangents, each map [3, K].

    `value` gives the gradient itself, `bias` its bias (Rao-Blackwellised where the marginal velocity is known),
    `within` its conditional fluctuation G - E[G given x_t, r, t] (None where that is not known).
    """

    value: np.ndarray
    bias: np.ndarray
    within: np.ndarray | None

    @classmethod
    def of_plane(cls, known: bool, target: bool = True) -> ColumnLayout:
        """The maps for the cotangents of `measures.plans.plane_basis`.

        `target` False leaves gamma at 0: e_0, e_b and, if `known`, their conditional means. Otherwise e_0, e_b, e_g
        and, if `known`, A b and -b, the conditional means of e_b and e_g: since e_b - A b = -A v' and e_g + b = v',
        the conditional fluctuation [(1 - beta) A - (1 - gamma) I] v' is a combination of these five.
        """
        if not target:
            value = np.zeros((3, 4 if known else 2))
            value[0, 0] = value[1, 1] = 1
            bias = np.roll(value, 2, axis=1) if known else value.copy()
            within = value - bias if known else None
            bias[0] = 0
            return cls(value, bias, within)
        if not known:
            value = np.eye(3)
            return cls(value, value * [[0], [1], [1]], None)
        value = np.eye(3, 5)
        bias = np.zeros((3, 5))
        bias[1, 3] = bias[2, 4] = 1
        within = np.array([[0.0, -1, -1, 1, 1], [0, 1, 0, -1, 0], [0, 0, 1, 0, -1]])
        return cls(value, bias, within)


@dataclass(frozen=True)
class Quadratic:
    """variance = c S c, conditional variance = c W c, bias2 = c B c with c = (1, beta, gamma); each [R, 3, 3]."""

    S: np.ndarray
    B: np.ndarray | None
    W: np.ndarray | None

    def at(self, form: np.ndarray, beta: np.ndarray, gamma: np.ndarray) -> np.ndarray:
        """c form c at each pair: beta, gamma [P] -> [R, P]."""
        c = np.stack([np.ones_like(beta), beta, gamma])
        return np.einsum("kp,rkl,lp->rp", c, form, c)

    def optimum(self, noise: np.ndarray, n: float, free: tuple[int, ...]) -> np.ndarray:
        """theory: c*_n = -(S_cc + n M_cc)^(-1) S_c0 over the `free` ones of beta (1) and gamma (2): [R, len(free)].

        `noise` is S or W. The others stay 0. NaN where the control has no variance.
        """
        penalty = 0.0 if self.B is None else n * self.B
        curve = noise + penalty
        rows = list(free)
        inner, right = curve[:, rows][:, :, rows], -noise[:, rows, 0]
        if len(rows) == 1:
            with np.errstate(divide="ignore", invalid="ignore"):
                return right / inner[:, 0]
        solvable = np.abs(np.linalg.det(inner)) > 1e-12 * np.abs(inner[:, 0, 0] * inner[:, 1, 1])
        solved = np.full(right.shape, np.nan)
        solved[solvable] = np.linalg.solve(inner[solvable], right[solvable][:, :, None])[:, :, 0]
        return solved

    def least_bias(self, noise: np.ndarray) -> np.ndarray:
        """Smallest eigenvalue of S_cc^-1 M_cc [R]: MSE_n has a minimum where 1 + n times it is positive.

        Below zero, or not told from it, where an estimate of M is lost in noise; `noise` is S or W.
        """
        assert self.B is not None
        (s, t, _, u), (m, k, _, q) = (form[:, 1:, 1:].reshape(-1, 4).T for form in (noise, self.B))
        volume = s * u - t**2
        half = (s * q + u * m - 2 * t * k) / volume / 2
        return half - np.sqrt(np.maximum(half**2 - (m * q - k**2) / volume, 0))


def degenerate(noise: np.ndarray, k: int) -> bool:
    """Whether the variance of control `k` is nothing beside the uncontrolled one, so that their ratio means nothing."""
    return bool(noise[0, k, k] <= DEGENERATE * noise[0, 0, 0])


def gradient_quadratic(moments: Moments, layout: ColumnLayout, group: int = 0) -> Quadratic:
    """From gradient moments: bias2 is the unbiased squared norm of the mean bias gradient, c M c."""

    def form(which: np.ndarray, map_: np.ndarray) -> np.ndarray:
        return map_ @ which[:, group] @ map_.T

    within = None if layout.within is None else form(moments.Q, layout.within)
    return Quadratic(form(moments.S, layout.value), form(moments.M, layout.bias), within)


def output_quadratic(moments: Moments, layout: ColumnLayout) -> Quadratic:
    """From residual moments: bias2 is E|(beta A - gamma I) b|^2, point by point, so it needs the marginal velocity."""
    value = layout.value @ moments.S[:, 0] @ layout.value.T
    if layout.within is None:
        return Quadratic(value, None, None)
    bias = layout.bias @ moments.Q[:, 0] @ layout.bias.T
    return Quadratic(value, bias, layout.within @ moments.Q[:, 0] @ layout.within.T)
