"""Balls that reach from each sample to its k-th nearest neighbour: the support as Kynkaanniemi et al. estimate it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NEIGHBOURS", "radii"]

NEIGHBOURS = 5  # k of Naeem et al. (arXiv 2002.09797)


def radii(distances: Tensor) -> Tensor:
    """Distance [m] of each point to its k-th nearest neighbour, from the distances [m, m] among them."""
    return distances.topk(NEIGHBOURS + 1, largest=False).values[:, -1]  # the nearest is the point itself
