"""Balls that reach from each point to its k-th nearest neighbor: how Kynkäänniemi et al. estimate a support."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NEIGHBORS", "neighbor_radii"]

NEIGHBORS = 5
"""k, as Naeem et al. choose it (arXiv 2002.09797)."""


def neighbor_radii(distances: Tensor) -> Tensor:
    """Distance [m] of each point to its k-th nearest neighbor, from the distances [m, m] between the points."""
    return distances.topk(NEIGHBORS + 1, largest=False).values[:, -1]  # the nearest is the point itself
