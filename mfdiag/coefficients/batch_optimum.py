"""The coefficient of least MSE_n of one control, with an interval that holds where its bias is lost in noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mfdiag.gradients.intervals import Estimate, SquaredMean, deviations, jackknife, quantile

__all__ = ["batch_optimum"]

_HALVINGS = 80  # of the range in which an end of the interval lies


def batch_optimum(cross: np.ndarray, variance: np.ndarray, bias: SquaredMean, n: float) -> Estimate:
    """beta*_n = beta*_0 / (1 + n M_bb / S_bb) with beta*_0 = -S_0b / S_bb (docs/theory.md#batch-aware).

    A squared mean is not negative: where its estimate is, beta*_n is beta*_0. The interval is Fieller's for the ratio
    -S_0b / (S_bb + n M_bb), but each hypothetical beta brings its own M_bb, at which the variance of its estimate is
    taken, as in `SquaredMean.estimate`. M_bb >= 0 also bounds it by the interval of beta*_0 (docs/theory.md#intervals).

    Args:
        cross: S_0b, replicates [1 + g].
        variance: S_bb, replicates [1 + g].
        bias: M_bb, a scalar.
        n: Batch size, above 0.

    Returns:
        The estimate, a scalar.
    """
    unlimited = jackknife(-cross / variance, bias.count)  # n -> 0
    value = unlimited.value / (1 + n * np.maximum(bias.replicates[0], 0) / variance[0])
    plain = jackknife(-cross / (variance + n * bias.replicates), bias.count)
    if not np.isfinite(plain.std_error) or not np.isfinite(value):
        return plain
    inside = _score(cross, variance, bias, n)
    ends = []
    for bound in (min(0.0, float(unlimited.low)), max(0.0, float(unlimited.high))):
        ends.append(bound if inside(bound) else _boundary(inside, float(value), bound))
    return plain._replace(value=value, low=np.array(ends[0]), high=np.array(ends[1]))


def _score(cross: np.ndarray, variance: np.ndarray, bias: SquaredMean, n: float) -> Callable[[float], bool]:
    """Whether the interval holds a hypothetical beta."""
    t = quantile(len(bias.count))
    denominator = variance + n * bias.replicates
    (a, h), (d, _) = (deviations(-cross, bias.count), deviations(denominator, bias.count))

    def covariance(x: np.ndarray, y: np.ndarray) -> float:
        return float((x * y / (h - 1)).sum() / len(bias.count))

    aa, ad, dd = covariance(a, a), covariance(a, d), covariance(d, d)
    error = jackknife(bias.replicates, bias.count).std_error
    slope, noise = map(float, bias.variance_law(error))

    def inside(beta: float) -> bool:
        residual = -cross[0] - beta * denominator[0]
        implied = max((-cross[0] / beta - variance[0]) / n, 0.0) if beta else np.inf
        # beta^2 n^2 Var(M) at the implied M instead of at its estimate; it vanishes with beta
        change = beta**2 * n**2 * (slope * implied + noise - float(error) ** 2) if beta else 0.0
        return bool(residual**2 <= t**2 * max(aa - 2 * beta * ad + beta**2 * dd + change, 0.0))

    return inside


def _boundary(inside: Callable[[float], bool], value: float, bound: float) -> float:
    """Where the interval around `value` ends on the way to `bound`, which is not inside."""
    held, outside = value, bound
    for _ in range(_HALVINGS):
        middle = (held + outside) / 2
        held, outside = (middle, outside) if inside(middle) else (held, middle)
    return held
