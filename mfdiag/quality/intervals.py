"""Intervals of metrics: from values of independent replicates, or from influences averaged over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit
from torch import Tensor

from mfdiag.gradients.moments import Estimate

__all__ = ["of_influence", "of_replicates", "of_shares"]


def of_replicates(values: np.ndarray, samples: int) -> Estimate:
    """The mean of values [B] from independent replicates, with Student's t on B - 1 degrees of freedom."""
    return _around(float(values.mean()), float(values.var(ddof=1) / len(values)), len(values) - 1, samples)


def of_shares(values: np.ndarray, samples: int, level: float = 0.95) -> Estimate:
    """The mean of shares [B] in [0, 1] from independent replicates, with Wilson's interval.

    The number of independent hits and misses that would give the variance seen between replicates takes the place of
    the count in Wilson's formula. Student's interval is too short near 0 and 1, where few replicates differ.
    """
    plain = of_replicates(values, samples)
    share, t = float(values.mean()), float(stdtrit(len(values) - 1, 0.5 + level / 2))
    # Wilson 1927: all p with |share - p| <= t sqrt(p (1-p) / n), at n = share (1-share) / variance, at most `samples`
    n = float(samples)
    if plain.std_error > 0:
        n = min(n, share * (1 - share) / float(plain.std_error) ** 2)
    centre = (share + t**2 / (2 * n)) / (1 + t**2 / n)
    half = t / (1 + t**2 / n) * np.sqrt(share * (1 - share) / n + (t / (2 * n)) ** 2)
    return plain._replace(low=np.array(centre - half), high=np.array(centre + half))


def of_influence(value: float, blocks: Sequence[Tensor], samples: int) -> Estimate:
    """A statistic whose influence function has the means `blocks`, one [B] for each independent source of its noise.

    To first order the statistic is the mean of the influences over B independent blocks (von Mises), whose spread gives
    the variance, with Student's t on one less than the smallest number of blocks.
    """
    variance = sum(float(part.double().var() / len(part)) for part in blocks)
    return _around(value, variance, min(map(len, blocks)) - 1, samples)


def _around(value: float, variance: float, freedom: int, samples: int, level: float = 0.95) -> Estimate:
    error = np.sqrt(variance)
    half = stdtrit(freedom, 0.5 + level / 2) * error
    return Estimate(np.array(value), np.array(error), np.array(value - half), np.array(value + half), samples)
