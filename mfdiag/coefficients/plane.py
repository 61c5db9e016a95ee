"""The plane (beta, gamma): variance, conditional variance, bias and their minimizers as quadratic forms.

A form is a 3 x 3 matrix over (1, beta, gamma), with a leading axis of jackknife replicates (gradients/moments.py).
Derivations: docs/theory.md#mse and docs/theory.md#batch-aware.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mfdiag.gradients.moments import Moments

__all__ = ["DEGENERATE", "ColumnLayout", "Quadratic", "gradient_quadratic", "is_degenerate", "output_quadratic"]

DEGENERATE = 1e-10
"""A control whose variance is below this share of the uncontrolled variance is constant up to rounding."""

_SINGULAR = 1e-12  # a 2 x 2 system whose determinant is below this share of its diagonal's product is singular


@dataclass(frozen=True)
class ColumnLayout:
    """How (1, beta, gamma) act on a group of K cotangents.

    Attributes:
        value: Map [3, K] to the gradient itself.
        bias: Map [3, K] to its bias: of conditional means if the marginal velocity is known
            (docs/theory.md#rao-blackwell), else of the gradients.
        within: Map [3, K] to its conditional fluctuation G - E[G given x_t, r, t]; None if that is not known.
    """

    value: np.ndarray
    bias: np.ndarray
    within: np.ndarray | None

    @classmethod
    def of_plane(cls, posterior_known: bool, target: bool = True) -> ColumnLayout:
        """The maps for the cotangents of `plane_basis` (measures/parts/plane_plans.py).

        With `target`, they are e_0, e_b, e_g and, if `posterior_known`, the conditional means A b of e_b and -b of e_g.
        Since e_b - A b = -A v' and e_g + b = v', the conditional fluctuation [(1 - beta) A - (1 - gamma) I] v' is a
        combination of these five (docs/theory.md#conditional).

        Args:
            posterior_known: Whether the posterior is known.
            target: Whether gamma is free. If not, gamma stays 0 and the cotangents are e_0, e_b and, if
                `posterior_known`, their conditional means.

        Returns:
            The maps.
        """
        if not target:
            value = np.zeros((3, 4 if posterior_known else 2))
            value[0, 0] = value[1, 1] = 1
            bias = np.roll(value, 2, axis=1) if posterior_known else value.copy()
            within = value - bias if posterior_known else None
            bias[0] = 0
            return cls(value, bias, within)
        if not posterior_known:
            value = np.eye(3)
            return cls(value, value * [[0], [1], [1]], None)
        value = np.eye(3, 5)
        bias = np.zeros((3, 5))
        bias[1, 3] = bias[2, 4] = 1
        within = np.array([[0.0, -1, -1, 1, 1], [0, 1, 0, -1, 0], [0, 0, 1, 0, -1]])
        return cls(value, bias, within)


@dataclass(frozen=True)
class Quadratic:
    """Three quadratic forms in c = (1, beta, gamma), each [R, 3, 3].

    Attributes:
        S: Variance = c^T S c.
        B: Squared bias = c^T B c; None if it is not known.
        W: Conditional variance = c^T W c; None if it is not known.
    """

    S: np.ndarray
    B: np.ndarray | None
    W: np.ndarray | None

    def at(self, form: np.ndarray, beta: np.ndarray, gamma: np.ndarray) -> np.ndarray:
        """Evaluate one of the forms.

        Args:
            form: S, B or W.
            beta: Tangent coefficients [P].
            gamma: Target coefficients [P].

        Returns:
            c^T form c for each pair, [R, P].
        """
        c = np.stack([np.ones_like(beta), beta, gamma])
        return np.einsum("kp,rkl,lp->rp", c, form, c)

    def optimum(self, noise: np.ndarray, n: float, free: tuple[int, ...]) -> np.ndarray:
        """The coefficients of least MSE_n: c*_n = -(S_cc + n M_cc)^(-1) S_c0 (docs/theory.md#batch-aware).

        Args:
            noise: S for the whole variance, or W for the conditional part.
            n: Batch size; 0 leaves the bias out.
            free: Which coefficients are optimized: beta is 1, gamma is 2. The other one stays 0.

        Returns:
            [R, len(free)]; NaN where the control has no variance.
        """
        penalty = 0.0 if self.B is None else n * self.B
        curvature = noise + penalty
        rows = list(free)
        inner, right = curvature[:, rows][:, :, rows], -noise[:, rows, 0]
        if len(rows) == 1:
            with np.errstate(divide="ignore", invalid="ignore"):
                return right / inner[:, 0]
        solvable = np.abs(np.linalg.det(inner)) > _SINGULAR * np.abs(inner[:, 0, 0] * inner[:, 1, 1])
        solved = np.full(right.shape, np.nan)
        solved[solvable] = np.linalg.solve(inner[solvable], right[solvable][:, :, None])[:, :, 0]
        return solved

    def least_bias_ratio(self, noise: np.ndarray) -> np.ndarray:
        """Smallest eigenvalue lambda of S_cc^-1 M_cc, [R]: MSE_n has a minimum where 1 + n lambda > 0.

        It is negative, or compatible with zero, where the estimate of M is lost in noise. `noise` is S or W. The
        derivation is docs/theory.md#batch-aware.
        """
        assert self.B is not None
        (s, t, _, u), (m, k, _, q) = (form[:, 1:, 1:].reshape(-1, 4).T for form in (noise, self.B))
        volume = s * u - t**2
        half = (s * q + u * m - 2 * t * k) / volume / 2
        return half - np.sqrt(np.maximum(half**2 - (m * q - k**2) / volume, 0))


def is_degenerate(noise: np.ndarray, k: int) -> bool:
    """Whether control `k` has no variance compared with the uncontrolled gradient: their ratio is meaningless then."""
    return bool(noise[0, k, k] <= DEGENERATE * noise[0, 0, 0])


def gradient_quadratic(moments: Moments, layout: ColumnLayout, group: int = 0) -> Quadratic:
    """The forms of the gradient's variance and bias.

    Args:
        moments: Moments of the gradients of a plan.
        layout: How (1, beta, gamma) act on its cotangents.
        group: Which group of cotangents.

    Returns:
        The forms; the squared bias is the unbiased estimate of |E G(c) - E G(0)|^2 (docs/theory.md#unbiased).
    """

    def form(matrix: np.ndarray, map_: np.ndarray) -> np.ndarray:
        return map_ @ matrix[:, group] @ map_.T

    within = None if layout.within is None else form(moments.Q, layout.within)
    return Quadratic(form(moments.S, layout.value), form(moments.M, layout.bias), within)


def output_quadratic(moments: Moments, layout: ColumnLayout) -> Quadratic:
    """The forms of the residual's variance and bias.

    The squared bias is E|(beta A - gamma I) b|^2, averaged over points, so it needs the marginal velocity.
    """
    value = layout.value @ moments.S[:, 0] @ layout.value.T
    if layout.within is None:
        return Quadratic(value, None, None)
    bias = layout.bias @ moments.Q[:, 0] @ layout.bias.T
    return Quadratic(value, bias, layout.within @ moments.Q[:, 0] @ layout.within.T)
