"""The coefficient of least MSE_n of one control, with an interval that holds where its bias is lost in noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mfdiag.gradients.intervals import (
    Estimate,
    SquaredMean,
    deviations,
    hall_transform,
    jackknife,
    quantile,
    skewed_jackknife,
    skewness,
)

__all__ = ["batch_optimum"]

_STEPS = 64  # into which the range is divided where an end of the interval lies
_ROUNDS = 9  # of this division: up to rounding


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
    unlimited = skewed_jackknife(-cross / variance, bias.count)  # n -> 0
    value = unlimited.value / (1 + n * np.maximum(bias.replicates[0], 0) / variance[0])
    plain = jackknife(-cross / (variance + n * bias.replicates), bias.count)
    if not np.isfinite(plain.std_error) or not np.isfinite(value):
        return plain
    inside = _score(-cross / variance, variance, bias, n)
    ends = []
    for bound in (min(0.0, float(unlimited.low)), max(0.0, float(unlimited.high))):
        ends.append(_last_inside(inside, float(value), bound))
    return plain._replace(value=value, low=np.array(ends[0]), high=np.array(ends[1]))


def _score(
    unlimited: np.ndarray, variance: np.ndarray, bias: SquaredMean, n: float
) -> Callable[[np.ndarray], np.ndarray]:
    """Whether the interval holds hypothetical betas, by the error of beta*_0 - beta (1 + n M_bb / S_bb)."""
    ratio = bias.replicates / variance
    (a, h), (m, _) = (deviations(x, bias.count) for x in (unlimited, ratio))
    error2 = float(jackknife(ratio, bias.count).std_error) ** 2
    slope, noise = (float(x) for x in bias.variance_law(error2**0.5 * variance[0]))
    slope, noise = slope / float(variance[0]), noise / float(variance[0]) ** 2
    h = h[:, None]

    def inside(beta: np.ndarray) -> np.ndarray:
        deviation = a[:, None] - beta * n * m[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            implied = np.maximum((unlimited[0] / beta - 1) / n, 0)
            # the part of M_bb / S_bb at the implied value instead of at its estimate; it vanishes with beta
            change = np.where(beta == 0, 0, beta**2 * n**2 * (slope * implied + noise - error2))
            error = np.sqrt(np.maximum((deviation * deviation / (h - 1)).sum(0) / len(h) + change, 0))
            residual = unlimited[0] - beta * (1 + n * ratio[0])
            t = np.where(error > 0, residual / error, np.where(residual == 0, 0, np.inf))
            t = hall_transform(t, skewness(deviation, h))
        return np.asarray(abs(t) <= quantile(deviation / np.sqrt(h - 1)))

    return inside


def _last_inside(inside: Callable[[np.ndarray], np.ndarray], value: float, bound: float) -> float:
    """Where the interval around `value` ends on the way to `bound`."""
    for _ in range(_ROUNDS):
        steps = np.linspace(value, bound, _STEPS + 1)
        held = inside(steps[1:])
        if held.all():
            return bound
        value, bound = steps[held.argmin()], steps[held.argmin() + 1]
    return float(value)
