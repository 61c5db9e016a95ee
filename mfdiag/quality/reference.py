"""The data that samples are compared with: a reference for metrics of all samples, subsamples for metrics of pairs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mfdiag.flow.data.datasets import Data, FiniteData
from mfdiag.flow.data.disk_arrays import Points
from mfdiag.quality.metrics._base import DataSubsample, Reference
from mfdiag.quality.points import REPLICATES, independent_uniforms, sobol_uniforms

__all__ = ["Embed", "make_reference", "make_subsamples"]

_DRAWN_POINTS = 2**16  # evenly spread points that stand for a distribution

Embed = Callable[["np.ndarray | Points"], Tensor]
"""Data float64 [n, *shape] -> features [n, d] on the device."""


def make_reference(data: Data, embed: Embed, samples: int, seed: int, held_out: FiniteData | None = None) -> Reference:
    """The reference for metrics of all samples: all points of a finite data set, else a large sample.

    Args:
        data: The data set.
        embed: Maps data to features.
        samples: Number of samples of each model.
        seed: Seed of the run.
        held_out: Data that no model was trained on, if there are any.

    Returns:
        The reference.
    """
    fresh = None if held_out is None else embed(held_out.points)
    if isinstance(data, FiniteData):
        return Reference(embed(data.points)[None], True, samples, seed, fresh)
    points = [embed(_draw(data, sobol_uniforms, seed, b, _DRAWN_POINTS // REPLICATES)) for b in range(REPLICATES)]
    return Reference(torch.stack(points), False, samples, seed, fresh)


def make_subsamples(data: Data, embed: Embed, subsample: int, seed: int) -> list[DataSubsample]:
    """REPLICATES subsamples of the data: independent draws, or subsets of a finite data set.

    Args:
        data: The data set.
        embed: Maps data to features.
        subsample: Points in each; fewer if the data set has fewer.
        seed: Seed of the run.

    Returns:
        The subsamples, which all have the scale of the first.
    """
    if isinstance(data, FiniteData):
        drawn = [embed(data.points[index]).double() for index in _subsets(len(data.points), subsample, seed)]
    else:
        drawn = [embed(_draw(data, independent_uniforms, seed, b, subsample)).double() for b in range(REPLICATES)]
    distances = [torch.cdist(y, y) for y in drawn]
    scale = float(distances[0][tuple(torch.triu_indices(len(drawn[0]), len(drawn[0]), 1))].median())
    return [DataSubsample(y, yy, scale) for y, yy in zip(drawn, distances, strict=True)]


def _subsets(size: int, subsample: int, seed: int) -> list[np.ndarray]:
    """REPLICATES subsets of `size` points without repetition; disjoint if there are enough points."""
    if REPLICATES * subsample <= size:
        index = np.random.default_rng([seed, REPLICATES]).permutation(size)[: REPLICATES * subsample]
        return np.split(index, REPLICATES)
    return [np.random.default_rng([seed, b]).permutation(size)[:subsample] for b in range(REPLICATES)]


def _draw(data: Data, uniforms: Callable[..., np.ndarray], seed: int, replicate: int, size: int) -> np.ndarray:
    return data.sample(uniforms(seed, "quality/data", replicate, size, data.width))[0]
