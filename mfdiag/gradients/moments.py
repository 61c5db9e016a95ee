"""Unbiased covariance traces and mean products of K gradients from block sums, and the block jackknife.

theory, section 3:
    S[k,l] = N/(N-1) (mean_i Q_i[k,l] - <Gbar_k, Gbar_l>)                          trace of the (cross-)covariance
    M[k,l] = (<sum_i G_ik, sum_i G_il> - sum_i Q_i[k,l]) / (N (N-1))               unbiased <E G_k, E G_l>
Both are functions of N, sum Q and the products of sums, so both have exact leave-one-block-out values. Any statistic
computed from a `Moments` whose leading axis holds [full sample, without block 1, without block 2, ...] gets its
standard error from that axis: write the formula once, broadcast over the first axis, call `jackknife`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
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
    """Value, standard error and 95 % interval, each of the statistic's own shape; n_samples behind it."""

    value: np.ndarray
    std_error: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_samples: int

    def inverse(self) -> Estimate:
        """The reciprocal: its interval is the interval inverted, open to infinity where that holds zero.

        A ratio whose denominator is lost in noise has no finite standard error; its reciprocal has.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            value = 1 / self.value
            inside = (self.low <= 0) & (self.high >= 0)
            low = np.where(inside, np.where(self.high > 0, 1 / self.high, -np.inf), 1 / self.high)
            high = np.where(inside, np.inf, 1 / self.low)
            return Estimate(value, self.std_error * value**2, low, high, self.n_samples)


@dataclass(frozen=True)
class Moments:
    """Replicates [R] of the moments of `groups` sets of K gradients; entry 0 is the full sample.

    S, M, Q [R, groups, K, K] float64: covariance trace, mean product, mean of the per-sample Gram. `count` [R - 1] are
    the sizes of the blocks left out.
    """

    S: np.ndarray
    M: np.ndarray
    Q: np.ndarray
    count: np.ndarray


@dataclass(frozen=True)
class BlockMoments:
    """What a set of samples split in B blocks leaves behind; additive over layers.

    count [B]; gram = sum of Q_i over each block, own = <s_bk, s_bl>, cross = <s_bk, S_l>, all [B, groups, K, K], with
    s_b the block's summed gradient and S their total; norm = <S_k, S_l> [groups, K, K].
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

    def state(self) -> list[torch.Tensor]:
        """The arrays as tensors, for `of_state`."""
        return [torch.as_tensor(getattr(self, entry.name)) for entry in fields(self)]

    @classmethod
    def of_state(cls, state: list[torch.Tensor]) -> BlockMoments:
        """The inverse of `state`."""
        return cls(*(tensor.numpy() for tensor in state))

    def replicates(self) -> Moments:
        """S, M and Q on the full sample and without each non-empty block."""
        kept = self.count > 0
        count = self.count[kept]
        gram = self.gram.sum(0)
        cross, own = self.cross[kept], self.own[kept]
        # |S - s_b|^2 = |S|^2 - <s_b, S> - <S, s_b> + |s_b|^2
        norms = np.concatenate([self.norm[None], self.norm - cross - cross.swapaxes(-1, -2) + own])
        grams = np.concatenate([gram[None], gram - self.gram[kept]])
        n = replicate_sizes(count)[:, None, None, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = grams / n
            covariance = (mean - norms / n**2) * n / (n - 1)
            product = (norms - grams) / (n * (n - 1))
        return Moments(covariance, product, mean, count)


def replicate_sizes(count: np.ndarray) -> np.ndarray:
    """Number of samples behind each replicate [1 + g]: all of them, then all but each block of sizes `count` [g]."""
    return np.concatenate([[count.sum()], count.sum() - count]).astype(float)


def scalar_replicates(values: np.ndarray, block: np.ndarray, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of per-sample values [n, ...] on the full sample and without each non-empty block; and block sizes."""
    count = np.bincount(block, minlength=blocks)
    sums = np.zeros((blocks, *values.shape[1:]))
    np.add.at(sums, block, values)
    kept = count > 0
    n = replicate_sizes(count[kept])
    totals = np.concatenate([sums.sum(0)[None], sums.sum(0) - sums[kept]])
    with np.errstate(divide="ignore", invalid="ignore"):
        return totals / n.reshape(-1, *[1] * (values.ndim - 1)), count[kept]


def positive_jackknife(replicates: np.ndarray, count: np.ndarray, level: float = 0.95) -> Estimate:
    """`jackknife` of a quantity that cannot be negative, on its logarithm: estimates of a variance are skewed.

    Entries of which some replicate is not positive keep the plain interval.
    """
    plain = jackknife(replicates, count, level)
    with np.errstate(divide="ignore", invalid="ignore"):
        log = jackknife(np.log(replicates), count, level)
        usable = (replicates > 0).all(0)
        low, high = (np.where(usable, np.exp(a), b) for a, b in ((log.low, plain.low), (log.high, plain.high)))
        std_error = np.where(usable, log.std_error * plain.value, plain.std_error)
    return Estimate(plain.value, std_error, low, high, plain.n_samples)


def jackknife(replicates: np.ndarray, count: np.ndarray, level: float = 0.95) -> Estimate:
    """Estimate from replicates [1 + g, ...]: the full sample's value, then the values without each of g blocks.

    Delete-a-block jackknife for blocks of unequal size (Busing, Meijer and van der Leeden 1999), Student's t on g - 1
    degrees of freedom. No normality of the data is assumed. For M of a mean that vanishes in d dimensions the interval
    covers 81 % (d = 1), 94 % (d = 3) to 99 % (d = 30): the jackknife of a degenerate U-statistic is wide on average,
    but narrow where the estimate happens to be lowest.
    """
    value, left_out = replicates[0], replicates[1:]
    g, n = len(count), int(count.sum())
    if g < 2:
        missing = np.full_like(value, np.nan)
        return Estimate(value, missing, missing, missing, n)
    h = (n / count).reshape(-1, *[1] * (left_out.ndim - 1))
    with np.errstate(invalid="ignore"):
        pseudo = h * value - (h - 1) * left_out
        centre = (pseudo / h).sum(0)
        std_error = np.sqrt(((pseudo - centre) ** 2 / (h - 1)).sum(0) / g)
    half = stdtrit(g - 1, 0.5 + level / 2) * std_error
    return Estimate(value, std_error, value - half, value + half, n)
