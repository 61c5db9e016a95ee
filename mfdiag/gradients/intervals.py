"""95 % intervals from jackknife replicates: docs/theory.md#jackknife and docs/theory.md#intervals.

Which function fits which statistic: `skewed_jackknife` for variances, their ratios and means of skewed numbers;
`ratio_jackknife` for a gain in variance, whose denominator is a small, noisy variance;
`squared_mean` for |E G|^2, which may be lost in noise; `cosine_jackknife` for cosines; `jackknife` for the rest.

This module does not import torch, so code that only reads moments starts fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

__all__ = [
    "Estimate",
    "SquaredMean",
    "cosine_jackknife",
    "deviations",
    "hall_transform",
    "jackknife",
    "quantile",
    "ratio_jackknife",
    "skewed_interval",
    "skewed_jackknife",
    "skewness",
]

_LEVEL = 0.95
_NO_SKEW = 1e-8  # below, the correction for skewness is less than rounding
_ROUNDING = 1e-9  # of a cosine: at 1 itself it has no Fisher transform


class Estimate(NamedTuple):
    """Value, standard error and 95 % interval, each of the statistic's own shape, from `n_samples` samples."""

    value: np.ndarray
    std_error: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_samples: int

    def inverse(self) -> Estimate:
        """The reciprocal. Its interval is the interval inverted, and unbounded where that contains zero.

        A ratio whose denominator is lost in noise has no finite standard error, but its reciprocal does.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            value = 1 / self.value
            contains_zero = (self.low <= 0) & (self.high >= 0)
            low = np.where(contains_zero, np.where(self.high > 0, 1 / self.high, -np.inf), 1 / self.high)
            high = np.where(contains_zero, np.inf, 1 / self.low)
            return Estimate(value, self.std_error * value**2, low, high, self.n_samples)


def quantile(deviation: np.ndarray, level: float = _LEVEL, corrected: float | np.ndarray = 0.0) -> np.ndarray:
    """Student's two-sided quantile; heavy tails of the deviations, whose square varies more, leave fewer degrees.

    Args:
        deviation: Independent contributions to the error, of mean 0 and of equal variance, [g, ...].
        level: Coverage of the interval, between 0 and 1.
        corrected: What of the kurtosis another correction takes up.

    Returns:
        The quantile for (g - 1) / (1 + k / 2) degrees of freedom, where k is the excess kurtosis less `corrected`
        (Satterthwaite, docs/theory.md#intervals), [...].
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        square = deviation * deviation  # products: powers take ten times as long
        square /= square.mean(0)
        excess = (square * square).mean(0) - 3 - corrected
    freedom = (len(deviation) - 1) / (1 + np.maximum(np.nan_to_num(excess), 0) / 2)
    return np.asarray(stdtrit(freedom, 0.5 + level / 2))


def deviations(replicates: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centered pseudo-values of the delete-a-block jackknife for blocks of unequal size (docs/theory.md#jackknife).

    Args:
        replicates: The statistic on the full sample and without each of g blocks, [1 + g, ...].
        count: Block sizes, [g].

    Returns:
        The deviations [g, ...], and the weights h = N / n_b [g, ...] that broadcast with them. The squared standard
        error is sum(deviation^2 / (h - 1)) / g, and likewise for products of the deviations of two statistics.
    """
    value, left_out = replicates[0], replicates[1:]
    h = (count.sum() / count).reshape(-1, *[1] * (left_out.ndim - 1))
    with np.errstate(invalid="ignore"):
        pseudo = h * value - (h - 1) * left_out
        return pseudo - (pseudo / h).sum(0), h


def jackknife(replicates: np.ndarray, count: np.ndarray, level: float = _LEVEL, *, bounded: bool = False) -> Estimate:
    """Estimate a statistic with a symmetric interval from Student's t.

    Args:
        replicates: The statistic on the full sample and without each of g blocks, [1 + g, ...].
        count: Block sizes, [g].
        level: Coverage of the interval, between 0 and 1.
        bounded: Whether the samples' contributions are bounded, so that g - 1 degrees of freedom hold at any level.

    Returns:
        The estimate; its error and interval are NaN for fewer than two blocks.
    """
    value, g, n = replicates[0], len(count), int(count.sum())
    if g < 2:
        missing = np.full_like(value, np.nan)
        return Estimate(value, missing, missing, missing, n)
    deviation, h = deviations(replicates, count)
    with np.errstate(invalid="ignore"):
        std_error = np.sqrt((deviation**2 / (h - 1)).sum(0) / g)
        t = stdtrit(g - 1, 0.5 + level / 2) if bounded else quantile(deviation / np.sqrt(h - 1), level)
        half = t * std_error
    return Estimate(value, std_error, value - half, value + half, n)


def skewed_jackknife(
    replicates: np.ndarray, count: np.ndarray, level: float = _LEVEL, *, nonnegative: bool = False
) -> Estimate:
    """Estimate a statistic whose errors are skewed: Hall's cubic transform of Student's t (Annals of Statistics 1992).

    With the skewness a of the statistic, T + a T^2 / 3 + a^2 T^3 / 27 + a / 6 is closer to Student's t than T. It is
    monotone in T, so that the interval is the one of the transform, mapped back (docs/theory.md#intervals).

    Args:
        replicates: The statistic on the full sample and without each of g blocks, [1 + g, ...].
        count: Block sizes, [g].
        level: Coverage of the interval, between 0 and 1.
        nonnegative: Whether the statistic cannot be negative in truth: the interval then ends at 0.

    Returns:
        The estimate, with the standard error of `jackknife`.
    """
    plain = jackknife(replicates, count, level)
    if len(count) < 2:
        return plain
    deviation, h = deviations(replicates, count)
    low, high = _hall(plain, skewness(deviation, h), quantile(deviation / np.sqrt(h - 1), level))
    return plain._replace(low=np.maximum(low, 0) if nonnegative else low, high=high)


def ratio_jackknife(replicates: np.ndarray, count: np.ndarray) -> Estimate:
    """Estimate a ratio of two positive statistics: the interval is that of `skewed_jackknife` for its logarithm.

    It treats a ratio and its reciprocal alike, and does not reach below 0.

    Args:
        replicates: The ratio on the full sample and without each of g blocks, [1 + g, ...].
        count: Block sizes, [g].

    Returns:
        The estimate, with the standard error of `jackknife`.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        logarithm = skewed_jackknife(np.log(replicates), count)
        return jackknife(replicates, count)._replace(low=np.exp(logarithm.low), high=np.exp(logarithm.high))


def skewness(deviation: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Skewness of a statistic from the result of `deviations`; 0 for a constant."""
    with np.errstate(invalid="ignore"):
        square = deviation * deviation / h
        cube = (square * deviation).sum(0)
        return np.nan_to_num(cube / square.sum(0) ** 1.5 / np.sqrt(len(deviation)))


def hall_transform(t: np.ndarray, skew: np.ndarray) -> np.ndarray:
    """Hall's cubic transform of a studentized statistic with this skewness."""
    return t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6


def skewed_interval(value: float, influence: np.ndarray) -> Estimate:
    """`skewed_jackknife` of a statistic whose influence values are known, one for each sample.

    Single samples, unlike blocks, are so skewed that Hall's transform and a quantile for their whole kurtosis would
    correct the same error twice (docs/theory.md#intervals).

    Args:
        value: The statistic.
        influence: How much each of N samples contributes to its error, N times; [N], with mean near 0.

    Returns:
        The estimate, a scalar.
    """
    n = len(influence)
    deviation = influence - influence.mean()
    with np.errstate(invalid="ignore"):
        std_error = deviation.std(ddof=1) / n**0.5
        missing = np.asarray(np.nan)
        plain = Estimate(np.asarray(value), np.asarray(std_error), missing, missing, n)
        skew = (deviation**3).mean() / (deviation**2).mean() ** 1.5
        low, high = _hall(plain, np.asarray(skew / n**0.5), quantile(deviation, corrected=np.nan_to_num(skew**2)))
    return plain._replace(low=low, high=high)


def _hall(plain: Estimate, skew: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the interval whose transformed statistic lies within the quantile t."""
    skew = np.nan_to_num(skew)  # of a constant
    safe = np.where(np.abs(skew) < _NO_SKEW, _NO_SKEW, skew)
    low, high = (
        plain.value - plain.std_error * (np.cbrt(1 + safe * (end - safe / 6)) - 1) * 3 / safe for end in (t, -t)
    )
    return low, high


def cosine_jackknife(replicates: np.ndarray, count: np.ndarray, level: float = _LEVEL) -> Estimate:
    """Estimate a cosine on Fisher's scale arctanh, where its error hardly depends on its value.

    Args:
        replicates: The cosine on the full sample and without each of g blocks, [1 + g, ...].
        count: Block sizes, [g].
        level: Coverage of the interval, between 0 and 1.

    Returns:
        The estimate. Where noise takes a replicate out of [-1, 1], the samples do not tell the cosine: its error and
        interval are NaN.
    """
    plain = jackknife(replicates, count, level)
    inside = (np.abs(replicates) <= 1 + _ROUNDING).all(0)
    cosines = np.clip(np.where(inside, replicates, np.nan), _ROUNDING - 1, 1 - _ROUNDING)
    scale = jackknife(np.arctanh(cosines), count, level)
    low, high = np.minimum(np.tanh(scale.low), plain.value), np.maximum(np.tanh(scale.high), plain.value)
    return plain._replace(std_error=np.where(inside, plain.std_error, np.nan), low=low, high=high)


@dataclass(frozen=True)
class SquaredMean:
    """An unbiased estimate of |E G|^2 and what its interval needs (docs/theory.md#intervals).

    Where E G is lost in noise and G varies in one direction alone, the interval covers 90 % instead of 95 %.

    Attributes:
        replicates: The estimate on the full sample and without each of g blocks, [1 + g, ...].
        trace: tr Cov G, [...].
        products: <m_a, m_b> of the means of G over groups of blocks, [A, A, ...]; the diagonal is not used.
        sizes: Samples in each group of blocks, [A].
        count: Block sizes, [g].
    """

    replicates: np.ndarray
    trace: np.ndarray
    products: np.ndarray
    sizes: np.ndarray
    count: np.ndarray

    def noise(self) -> np.ndarray:
        """2 tr(C^2) / (N (N - 1)), the variance of the estimate where E G = 0; NaN for fewer than four groups.

        Between groups a and b, <m_a, m_b> = |E G|^2 + x_a + x_b + y_ab with E y_ab^2 = tr(C^2) / (n_a n_b): what an
        additive fit leaves over on A (A - 3) / 2 degrees of freedom.
        """
        groups, n = len(self.sizes), float(self.sizes.sum())
        if groups < 4:
            return np.full_like(self.trace, np.nan)
        off = ~np.eye(groups, dtype=bool).reshape(groups, groups, *[1] * self.trace.ndim)
        products = np.where(off, self.products, 0)
        mean = products.sum((0, 1)) / (groups * (groups - 1))
        effect = (products.sum(1) / (groups - 1) - mean) * (groups - 1) / (groups - 2)
        left_over = np.where(off, products - mean - effect[:, None] - effect[None], 0)
        weight = np.multiply.outer(self.sizes, self.sizes).astype(float).reshape(off.shape)
        square = (left_over**2 * weight).sum((0, 1)) / (groups * (groups - 3))
        return np.asarray(2 * square / (n * (n - 1)))

    def estimate(self, denominator: np.ndarray | float = 1.0, added: np.ndarray | float = 0.0) -> Estimate:
        """(|E G|^2 + added) / denominator with a score interval.

        The variance at a hypothetical |E G|^2 = theta is slope theta + noise: it grows with theta, so that an estimate
        that happens to be low does not also claim to be precise. The interval holds every theta that lies within
        Student's quantile of the estimate under its own variance.

        Args:
            denominator: A positive statistic of the same samples, replicates [1 + g, ...], or a number.
            added: A statistic of the same samples, replicates [1 + g, ...], or a number.

        Returns:
            The estimate, with the standard error of `jackknife`.
        """
        scale = np.broadcast_to(np.asarray(denominator, float), self.replicates.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            plain = jackknife((self.replicates + added) / scale, self.count)
            alone = jackknife(self.replicates / scale, self.count)
            slope, noise = self.variance_law(alone.std_error * scale[0])
            slope, noise = slope / scale[0], noise / scale[0] ** 2
            rest = np.maximum(plain.std_error**2 - alone.std_error**2, 0)  # the part of what is added
            deviation, h = deviations((self.replicates + added) / scale, self.count)
            t = quantile(deviation / np.sqrt(h - 1)) if len(self.count) > 1 else np.nan
            # (estimate - x)^2 <= t^2 (slope theta + noise + rest), where theta moves with x
            shift = t**2 * slope / 2
            half = np.sqrt(np.maximum(shift**2 + t**2 * (slope * alone.value + noise + rest), 0))
        return plain._replace(low=plain.value + shift - half, high=plain.value + shift + half)

    def variance_law(self, std_error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slope and noise of the estimate's variance, slope |E G|^2 + noise.

        The jackknife measures 4 Gbar^T C Gbar / N, which is 4 s^2 |Gbar|^2 / N with the variance s^2 of G along Gbar,
        and |Gbar|^2 is |E G|^2 + tr(C) / N on average. So the slope follows from its error; it is 0 where G vanishes.

        Args:
            std_error: The estimate's jackknife error, [...].

        Returns:
            The slope and the noise, [...]. For too few groups the noise is half the squared error, which is twice the
            variance where E G = 0.
        """
        size = np.maximum(self.replicates[0], 0) + self.trace / float(self.count.sum())
        noise = self.noise()
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where(size > 0, std_error**2 / size, 0)
            return slope, np.where(np.isfinite(noise), noise, std_error**2 / 2)
