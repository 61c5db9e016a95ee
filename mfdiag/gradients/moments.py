"""Unbiased covariance traces and mean products of K gradients from block sums.

docs/theory.md#moments:
    S[k,l] = N/(N-1) (mean_i Q_i[k,l] - <Gbar_k, Gbar_l>)                          trace of the (cross-)covariance
    M[k,l] = (<sum_i G_ik, sum_i G_il> - sum_i Q_i[k,l]) / (N (N-1))               unbiased <E G_k, E G_l>
Both are functions of N, sum Q and the products of sums, so their values without one block are exact. The leading axis
of a `Moments` holds [full sample, without block 1, without block 2, ...]. A statistic gets its standard error from that
axis: write its formula once, broadcast over the first axis, and call a function of gradients/intervals.py.

This module does not import torch, so code that only reads moments starts fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mfdiag.gradients.intervals import SquaredMean

__all__ = ["PAIR_GROUPS", "BlockMoments", "Moments", "replicate_sizes", "scalar_replicates"]

PAIR_GROUPS = 16
"""Groups of blocks between which products of means are stored: 104 degrees of freedom for their noise."""


@dataclass(frozen=True)
class Moments:
    """Replicates [R] of the moments of `groups` sets of K gradients; entry 0 is the full sample.

    S, M, Q [R, groups, K, K] float64: covariance trace, mean product, mean of the per-sample Gram matrix. `count`
    [R - 1] are the sizes of the blocks left out. `products` [A, A, groups, K, K] are inner products of the means over A
    groups of blocks, whose sizes are `sizes` [A].
    """

    S: np.ndarray
    M: np.ndarray
    Q: np.ndarray
    count: np.ndarray
    products: np.ndarray
    sizes: np.ndarray

    def squared_mean(self, weights: np.ndarray, group: int = 0) -> SquaredMean:
        """|E G|^2 of the combinations G = sum_k w_k G_k of a group's gradients.

        Args:
            weights: The combinations w, [..., K].
            group: Which group.

        Returns:
            Their squared means, [...].
        """

        def form(matrix: np.ndarray) -> np.ndarray:
            return np.asarray(np.einsum("...k,rkl,...l->r...", weights, matrix[:, group], weights))

        pairs = np.einsum("...k,abkl,...l->ab...", weights, self.products[:, :, group], weights)
        return SquaredMean(form(self.M), form(self.S[:1])[0], pairs, self.sizes, self.count)


@dataclass(frozen=True)
class BlockMoments:
    """Sums over the B blocks of a set of samples, from which all moments follow; additive over layers.

    Attributes:
        count: Block sizes, [B].
        gram: Sum of Q_i over each block, [B, groups, K, K].
        own: <T_bk, T_bl>, [B, groups, K, K], for the block's summed gradient T_b.
        cross: <T_bk, T_l>, [B, groups, K, K], for the total T of all blocks.
        norm: <T_k, T_l>, [groups, K, K].
        products: <T_ak, T_bl> of the gradients summed over groups of blocks, [A, A, groups, K, K].
        sizes: Samples in each group of blocks, [A].
    """

    count: np.ndarray
    gram: np.ndarray
    own: np.ndarray
    cross: np.ndarray
    norm: np.ndarray
    products: np.ndarray
    sizes: np.ndarray

    def __add__(self, other: BlockMoments) -> BlockMoments:
        """The same samples, more parameters."""
        return BlockMoments(
            self.count,
            self.gram + other.gram,
            self.own + other.own,
            self.cross + other.cross,
            self.norm + other.norm,
            self.products + other.products,
            self.sizes,
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
            means = self.products / np.multiply.outer(self.sizes, self.sizes)[..., None, None, None]
        return Moments(covariance, product, mean, count, means, self.sizes)


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
    with np.errstate(invalid="ignore"):  # 0 / 0 without the only block
        return totals / n.reshape(-1, *[1] * (values.ndim - 1)), count[filled]
