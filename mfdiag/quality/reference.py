"""What samples are compared with: all points of a finite data set, else a large sample of its law; and subsamples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mfdiag.flow.data.datasets import Data, FiniteData
from mfdiag.flow.data.disk_arrays import Points
from mfdiag.quality.metrics import Replicate
from mfdiag.quality.points import REPLICATES, independent, spread

__all__ = ["Embed", "Reference", "make_reference", "make_replicates"]

_SAMPLED = 2**16  # points that stand for a law, evenly spread

Embed = Callable[["np.ndarray | Points"], Tensor]
"""Data float64 [n, *shape] -> features [n, d] on the device."""


@dataclass(frozen=True)
class Reference:
    """The data in feature space, for metrics of all samples.

    `points` are [1, N, d], the `whole` data set, or [B, N/B, d], B independent replicates of evenly spread draws from
    its law; `samples` says how many of a model they will be compared with.
    """

    points: Tensor
    whole: bool
    samples: int
    seed: int


def make_reference(data: Data, embed: Embed, samples: int, seed: int) -> Reference:
    """The reference of `data` for pools of `samples`."""
    if isinstance(data, FiniteData):
        return Reference(embed(data.points)[None], True, samples, seed)
    points = [embed(_draw(data, spread, seed, b, _SAMPLED // REPLICATES)) for b in range(REPLICATES)]
    return Reference(torch.stack(points), False, samples, seed)


def make_replicates(data: Data, embed: Embed, subsample: int, seed: int) -> list[Replicate]:
    """REPLICATES subsamples of `data` of `subsample` points, or of all it has: independent draws, or subsets."""
    if isinstance(data, FiniteData):
        drawn = [embed(data.points[index]).double() for index in _subsets(len(data.points), subsample, seed)]
    else:
        drawn = [embed(_draw(data, independent, seed, b, subsample)).double() for b in range(REPLICATES)]
    distances = [torch.cdist(y, y) for y in drawn]
    scale = float(distances[0][tuple(torch.triu_indices(len(drawn[0]), len(drawn[0]), 1))].median())
    return [Replicate(y, yy, scale) for y, yy in zip(drawn, distances, strict=True)]


def _subsets(size: int, subsample: int, seed: int) -> list[np.ndarray]:
    """REPLICATES subsets of `size` points without repetition; disjoint where there are enough points."""
    if REPLICATES * subsample <= size:
        chosen = np.random.default_rng([seed, REPLICATES]).permutation(size)[: REPLICATES * subsample]
        return np.split(chosen, REPLICATES)
    return [np.random.default_rng([seed, b]).permutation(size)[:subsample] for b in range(REPLICATES)]


def _draw(data: Data, draw: Callable[..., np.ndarray], seed: int, replicate: int, size: int) -> np.ndarray:
    return data.sample(draw(seed, "quality/data", replicate, size, data.width))[0]
