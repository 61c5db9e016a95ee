"""Moments of each compared estimator, from the group's gradients by the plan's maps: docs/theory.md#family-bias."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mfdiag.coefficients.mixture import mixture_weights
from mfdiag.flow.data.datasets import Data
from mfdiag.gradients.intervals import Estimate, SquaredMean, jackknife, ratio_jackknife
from mfdiag.gradients.moments import BlockMoments, Moments
from mfdiag.measures.parts.compare_plan import Maps
from mfdiag.measures.parts.concentration import FINITE_VARIANCE, heaviest_tail, heavy_tails

__all__ = [
    "best_mixture",
    "cosines",
    "heaviest_mean_tails",
    "heaviest_tails",
    "method_statistics",
    "mixture_gain",
    "squared_bias",
]


def method_statistics(moments: Moments, maps: Maps) -> dict[str, np.ndarray]:
    """Variances and their ratios to MeanFlow's, the first of K estimators: quantity -> replicates [R, K]."""
    S, Q = moments.S[:, 0], moments.Q[:, 0]
    variance = _bilinear(S, maps.value)
    statistics = {"variance": variance, "variance_ratio": variance / variance[:, :1]}
    if maps.within is not None:
        within = _bilinear(Q, maps.within)
        statistics |= {"conditional_variance": within, "conditional_variance_ratio": within / within[:, :1]}
    return statistics


def cosines(moments: Moments, maps: Maps) -> np.ndarray:
    """Cosines of the K estimators' mean gradients with MeanFlow's, replicates [R, K]."""
    M, mean = moments.M[:, 0], maps.mean[0] + _bias(moments.S[:, 0], maps)
    norm = _bilinear(M, mean)
    return np.asarray(_bilinear(M, mean, np.broadcast_to(maps.mean[0], mean.shape)) / np.sqrt(norm * norm[:, :1]))


def squared_bias(moments: Moments, maps: Maps, shown: Sequence[int]) -> SquaredMean:
    """The squared bias of some estimators, with what its interval needs.

    Args:
        moments: Moments of the group's gradients.
        maps: From the group's gradients to those of the K estimators.
        shown: Numbers of the estimators, s of them.

    Returns:
        |E G_k - E G_MeanFlow|^2, [s].
    """
    return moments.squared_mean(_bias(moments.S[:, 0], maps)[list(shown)])


def heaviest_tails(norms: np.ndarray, maps: Maps, data: Data) -> np.ndarray:
    """Why heavy tails leave no interval of each estimator's variance to trust, [K]; None where they do.

    Args:
        norms: Squared norms of the group's gradients, [N, C].
        maps: From the group's gradients to those of the K estimators.
        data: What the samples are drawn from.

    Returns:
        Statuses of the worst gradient that each estimator is made of.
    """
    return np.array([heaviest_tail(norms[:, weights != 0], data) for weights in maps.value], dtype=object)


def heaviest_mean_tails(norms: np.ndarray, maps: Maps, data: Data) -> np.ndarray:
    """The same for comparisons of each estimator's mean gradient with MeanFlow's.

    Args:
        norms: Squared norms of the group's gradients, [N, C].
        maps: From the group's gradients to those of the K estimators.
        data: What the samples are drawn from.

    Returns:
        Statuses of the worst gradient that an estimator or MeanFlow is made of, [K].
    """
    tails = heavy_tails(norms, data, FINITE_VARIANCE)
    used = (maps.value != 0) | (maps.value[0] != 0)
    return np.array([next(filter(None, tails[columns]), None) for columns in used], dtype=object)


def best_mixture(moments: Moments, maps: Maps, n: int | None) -> np.ndarray:
    """The linear mixture of least error: docs/theory.md#mixture.

    Args:
        moments: Moments of the group's gradients.
        maps: From the group's gradients to those of the K estimators.
        n: Batch size of the MSE that is minimized; None minimizes the variance.

    Returns:
        Weights by jackknife replicate, [R, K].
    """
    S, M = moments.S[:, 0], moments.M[:, 0]
    bias = _bias(S, maps)
    return mixture_weights(maps.value @ S @ maps.value.T, bias @ M @ bias.T, 0 if n is None else n)


def mixture_gain(halves: tuple[BlockMoments, BlockMoments], maps: Maps, n: int | None) -> Estimate:
    """What the best mixture gains over MeanFlow, fitted on one half of the samples and evaluated on the other.

    Args:
        halves: Block moments of the half it is fitted on and of the other.
        maps: From the group's gradients to those of the K estimators.
        n: Batch size of the MSE; None compares variances.

    Returns:
        MeanFlow's error divided by the mixture's, a scalar.
    """
    fitted, held_out = (half.replicates() for half in halves)
    weights = best_mixture(fitted, maps, n)[0]
    # on the held-out half, whose moments choose again between the two maps of the bias
    value, bias = weights @ maps.value, weights @ _bias(held_out.S[:, 0], maps)
    error = _bilinear(held_out.S[:, 0], value[None])[:, 0]
    meanflow = _bilinear(held_out.S[:, 0], maps.value[:1])[:, 0]
    if n is not None:
        error, meanflow = error / n + _bilinear(held_out.M[:, 0], bias[None])[:, 0], meanflow / n
    spread = ratio_jackknife if n is None else jackknife  # an MSE may be estimated to be negative
    return spread(error / meanflow, held_out.count).inverse()


def _bilinear(matrix: np.ndarray, left: np.ndarray, right: np.ndarray | None = None) -> np.ndarray:
    """left M right for each pair of rows of the maps [K, C]: [R, K] from [R, C, C]."""
    return np.einsum("kc,rcd,kd->rk", left, matrix, left if right is None else right)


def _bias(S: np.ndarray, maps: Maps) -> np.ndarray:
    """Map [K, C] to gradients whose means are the biases E G_k - E G_MeanFlow.

    There are two candidates: the difference of the conditional means, and that of the gradients themselves, whose noise
    cancels where the methods are close. The one with less variance is used.
    """
    candidates = [maps.mean - maps.mean[0], maps.value - maps.value[0]]
    variances = [_bilinear(S[:1], candidate)[0] for candidate in candidates]
    return np.where((variances[0] <= variances[1])[:, None], *candidates)
