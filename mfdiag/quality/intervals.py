"""Intervals of metrics, from values of independent replicates or from influences averaged over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit
from torch import Tensor

from mfdiag.gradients.intervals import Estimate

__all__ = ["estimate_from_influence", "estimate_from_replicates", "estimate_from_shares"]

_LEVEL = 0.95


def estimate_from_replicates(values: np.ndarray, samples: int) -> Estimate:
    """The mean of values [B] from independent replicates, with Student's t on B - 1 degrees of freedom.

    `samples` is the number of samples behind all of them, for the column `n_samples`.
    """
    return _student(float(values.mean()), float(values.var(ddof=1) / len(values)), len(values) - 1, samples)


def estimate_from_shares(values: np.ndarray, samples: int) -> Estimate:
    """The mean of shares [B] in [0, 1] from independent replicates, with Wilson's interval.

    Student's interval is too short near 0 and 1, where few replicates differ. Wilson's formula needs a number of
    independent hits and misses: here the number that would give the variance between replicates, and at most `samples`
    (docs/theory.md#quality-paired).
    """
    plain = estimate_from_replicates(values, samples)
    share, t = float(values.mean()), float(stdtrit(len(values) - 1, 0.5 + _LEVEL / 2))
    # Wilson 1927: all p with |share - p| <= t sqrt(p (1-p) / n), at n = share (1-share) / variance
    n = float(samples)
    if plain.std_error > 0:
        n = min(n, share * (1 - share) / float(plain.std_error) ** 2)
    center = (share + t**2 / (2 * n)) / (1 + t**2 / n)
    half = t / (1 + t**2 / n) * np.sqrt(share * (1 - share) / n + (t / (2 * n)) ** 2)
    return plain._replace(low=np.array(center - half), high=np.array(center + half))


def estimate_from_influence(
    value: float, halved: float, blocks: Sequence[Tensor], samples: int, *, squared: float | None = None
) -> Estimate:
    """A statistic with an interval from its influence function (docs/theory.md#quality-pooled).

    To first order the error of the statistic is the mean influence (von Mises). The spread between blocks gives its
    variance, with Student's t on one less than the smallest number of blocks. To second order the statistic is too
    large, by a bias that halves of the samples show, and its interval reaches further down by it. The interval of a
    squared distance is moved by the bias, because the noise of that is known.

    Args:
        value: The statistic.
        halved: The mean of the statistic of two halves of the blocks, which together are all of them.
        blocks: Mean influences of independent blocks, [B] for each independent source of noise.
        samples: Number of samples of the model, for the column `n_samples`.
        squared: For a squared distance, the noise of its bias in parts of it. Its variance is proportional to the
            truth, so the interval is a score interval, which is longer above.

    Returns:
        Value, standard error and interval.
    """
    variance = sum(float(part.double().var() / len(part)) for part in blocks)
    plain = _student(value, variance, min(map(len, blocks)) - 1, samples)
    # the bias is c / B in B blocks and 2 c / B in half as many, and the first order of two halves is that of the whole
    bias = halved - value
    if squared is None or value <= 0:
        return plain._replace(low=plain.low - max(bias, 0))
    # all theta with (value - bias - theta)^2 <= t^2 (variance theta / value + (squared bias)^2)
    t2 = float(stdtrit(min(map(len, blocks)) - 1, 0.5 + _LEVEL / 2)) ** 2
    growth = t2 * variance / (2 * value)
    half2 = growth**2 + 2 * growth * (value - bias) + t2 * (squared * bias) ** 2
    center, half = value - bias + growth, np.sqrt(max(half2, 0))
    return plain._replace(low=np.array(center - half), high=np.array(center + half))


def _student(value: float, variance: float, freedom: int, samples: int) -> Estimate:
    error = np.sqrt(variance)
    half = stdtrit(freedom, 0.5 + _LEVEL / 2) * error
    return Estimate(np.array(value), np.array(error), np.array(value - half), np.array(value + half), samples)
