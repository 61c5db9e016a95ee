"""Unbiased covariance traces and mean products of K gradients from block sums, and the block jackknife.

docs/theory.md#moments:
    S[k,l] = N/(N-1) (mean_i Q_i[k,l] - <Gbar_k, Gbar_l>)                          trace of the (cross-)covariance
    M[k,l] = (<sum_i G_ik, sum_i G_il> - sum_i Q_i[k,l]) / (N (N-1))               unbiased <E G_k, E G_l>
Both are functions of N, sum Q and the products of sums, so their values without one block are exact. The leading axis
of a `Moments` holds [full sample, without block 1, without block 2, ...]. A statistic gets its standard error from that
axis: write its formula once, broadcast over the first axis, and call `jackknife`.

This module does not import torch, so code that only reads moments starts fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

__all__ = [
    "BlockMoments",
    "Estimate",
    "Moments",
    "jackknife",
    "positive_jackknife",
    "replicate_sizes",
    "scalar_replicates",
]


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


@dataclass(frozen=True)
class Moments:
    """Replicates [R] of the moments of `groups` sets of K gradients; entry 0 is the full sample.

    S, M, Q [R, groups, K, K] float64: covariance trace, mean product, mean of the per-sample Gram matrix. `count`
    [R - 1] are the sizes of the blocks left out.
    """

    S: np.ndarray
    M: np.ndarray
    Q: np.ndarray
    count: np.ndarray


@dataclass(frozen=True)
class BlockMoments:
    """Sums over the B blocks of a set of samples, from which all moments follow; additive over layers.

    Attributes:
        count: Block sizes, [B].
        gram: Sum of Q_i over each block, [B, groups, K, K].
        own: <T_bk, T_bl>, [B, groups, K, K], for the block's summed gradient T_b.
        cross: <T_bk, T_l>, [B, groups, K, K], for the total T of all blocks.
        norm: <T_k, T_l>, [groups, K, K].
    """

    count: np.ndarray
    gram: np.ndarray
    own: np.ndarray
    cross: np.ndarray
    norm: np.ndarray

    def __add__(self, other: BlockMoments) -> BlockMoments:
        """The same samples, more parameters."""
        return BlockMoments(
            self.count,
            self.gram + other.gram,
            self.own + other.own,
            self.cross + other.cross,
            self.norm + other.norm,
        )

    def replicates(self) -> Moments:
        """S, M and Q on the full sample and without each non-empty block."""
        filled = self.count > 0
        count = self.count[filled]
        gram = self.gram.sum(0)
        cross, own = self.cross[filled], self.own[filled]
        # docs/theory.md#jackknife: |T - T_b|^2 = |T|^2 - <T_b, T> - <T, T_b> + |T_b|^2
        norms = np.concatenate([self.norm[None], self.norm - cross - cross.swapaxes(-1, -2) + own])
        grams = np.concatenate([gram[None], gram - self.gram[filled]])
        n = replicate_sizes(count)[:, None, None, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = grams / n
            covariance = (mean - norms / n**2) * n / (n - 1)
            product = (norms - grams) / (n * (n - 1))
        return Moments(covariance, product, mean, count)


def replicate_sizes(count: np.ndarray) -> np.ndarray:
    """Number of samples of each replicate [1 + g]: all of them, then all but one of the blocks of sizes `count` [g]."""
    return np.concatenate([[count.sum()], count.sum() - count]).astype(float)


def scalar_replicates(values: np.ndarray, block: np.ndarray, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute means of per-sample values on the full sample and without each non-empty block.

    Args:
        values: Per-sample values, [n, ...].
        block: Each sample's block, [n].
        blocks: The number of blocks.

    Returns:
        Replicates [1 + g, ...] and the sizes [g] of the non-empty blocks, as `jackknife` takes them.
    """
    count = np.bincount(block, minlength=blocks)
    sums = np.zeros((blocks, *values.shape[1:]))
    np.add.at(sums, block, values)
    filled = count > 0
    n = replicate_sizes(count[filled])
    totals = np.concatenate([sums.sum(0)[None], sums.sum(0) - sums[filled]])
    with np.errstate(divide="ignore", invalid="ignore"):
        return totals / n.reshape(-1, *[1] * (values.ndim - 1)), count[filled]


def positive_jackknife(replicates: np.ndarray, count: np.ndarray, level: float = 0.95) -> Estimate:
    """Apply `jackknife` to the logarithm of a quantity that cannot be negative (docs/theory.md#intervals).

    Estimates of a variance are skewed, and their logarithm is less so. Entries with a replicate that is not positive
    keep the plain interval.

    Args:
        replicates: The quantity on the full sample and without each of g blocks, [1 + g, ...].
        count: Block sizes, [g].
        level: Coverage of the interval, between 0 and 1.

    Returns:
        The estimate.
    """
    plain = jackknife(replicates, count, level)
    with np.errstate(divide="ignore", invalid="ignore"):
        log = jackknife(np.log(replicates), count, level)
        usable = (replicates > 0).all(0)
        low, high = (np.where(usable, np.exp(a), b) for a, b in ((log.low, plain.low), (log.high, plain.high)))
        std_error = np.where(usable, log.std_error * plain.value, plain.std_error)
    return Estimate(plain.value, std_error, low, high, plain.n_samples)


def jackknife(replicates: np.ndarray, count: np.ndarray, level: float = 0.95) -> Estimate:
    """Estimate a statistic by the delete-a-block jackknife for blocks of unequal size (docs/theory.md#jackknife).

    The interval is Student's t on g - 1 degrees of freedom; the data need not be normal. For M of a mean that vanishes
    in d dimensions the interval covers 81 % (d = 1), 94 % (d = 3) to 99 % (d = 30): the jackknife of a degenerate
    U-statistic is wide on average, but narrow where the estimate happens to be lowest.

    Args:
        replicates: The statistic on the full sample and without each of g blocks, [1 + g, ...].
        count: Block sizes, [g].
        level: Coverage of the interval, between 0 and 1.

    Returns:
        The estimate; its error and interval are NaN for fewer than two blocks.
    """
    value, left_out = replicates[0], replicates[1:]
    g, n = len(count), int(count.sum())
    if g < 2:
        missing = np.full_like(value, np.nan)
        return Estimate(value, missing, missing, missing, n)
    h = (n / count).reshape(-1, *[1] * (left_out.ndim - 1))
    with np.errstate(invalid="ignore"):
        pseudo = h * value - (h - 1) * left_out
        center = (pseudo / h).sum(0)
        std_error = np.sqrt(((pseudo - center) ** 2 / (h - 1)).sum(0) / g)
    half = stdtrit(g - 1, 0.5 + level / 2) * std_error
    return Estimate(value, std_error, value - half, value + half, n)
