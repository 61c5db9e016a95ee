"""Which cell of the (r, t) triangle, and which jackknife block, each sample belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

__all__ = ["Box", "Cells", "make_cells"]

_BLOCKS = 64  # 32 in each half when a coefficient is fitted on one half and tested on the other


class Box(NamedTuple):
    """Bounds of a cell; None where the cell does not restrict that time."""

    r_low: float | None = None
    r_high: float | None = None
    t_low: float | None = None
    t_high: float | None = None


@dataclass(frozen=True)
class Cells:
    """A tree of cells over N samples; the last cell is the root and contains every sample.

    Attributes:
        leaf: Each sample's cell, [N].
        parent: Each cell's parent, -1 for the root. Children of one parent are consecutive.
        boxes: Each cell's bounds.
        block: Each sample's jackknife block, [N]: a run of consecutive sample numbers.
        blocks: The number of blocks.
    """

    leaf: np.ndarray
    parent: list[int]
    boxes: list[Box]
    block: np.ndarray
    blocks: int

    @cached_property
    def order(self) -> np.ndarray:
        """Sample numbers in the order in which they are measured: cell by cell."""
        return np.argsort(self.leaf, kind="stable")

    def members(self, cell: int) -> np.ndarray:
        """Mask [N] of the samples in a cell and the cells below it."""
        inside = {cell}
        for child in range(cell - 1, -1, -1):
            if self.parent[child] in inside:
                inside.add(child)
        return np.isin(self.leaf, list(inside))


def make_cells(r: np.ndarray, t: np.ndarray, bins: tuple[int, int] | None) -> Cells:
    """Sort samples into R x T bins (those with some r < t), the T bins of t alone, and one cell for everything.

    Args:
        r: Start times in [0, 1], [N].
        t: End times in [r, 1], [N].
        bins: R and T; None makes the one cell for everything.

    Returns:
        The cells.
    """
    n = len(r)
    blocks = min(_BLOCKS, n)
    block = np.arange(n) * blocks // n
    if bins is None:
        return Cells(np.zeros(n, int), [-1], [Box()], block, blocks)
    r_bins, t_bins = bins
    pairs = [(i, j) for j in range(t_bins) for i in range(r_bins) if i * t_bins < (j + 1) * r_bins]
    number = {pair: k for k, pair in enumerate(pairs)}
    j = np.minimum((t * t_bins).astype(int), t_bins - 1)
    i = np.minimum((r * r_bins).astype(int), ((j + 1) * r_bins - 1) // t_bins)  # rounding must not put r above t
    leaf = np.array([number[pair] for pair in zip(i.tolist(), j.tolist(), strict=True)])
    columns = [Box(None, None, j / t_bins, (j + 1) / t_bins) for j in range(t_bins)]
    if r_bins == 1:
        return Cells(leaf, [t_bins] * t_bins + [-1], [*columns, Box()], block, blocks)
    boxes = [Box(i / r_bins, (i + 1) / r_bins, j / t_bins, (j + 1) / t_bins) for i, j in pairs]
    root = len(pairs) + t_bins
    parent = [len(pairs) + j for _, j in pairs] + [root] * t_bins + [-1]
    return Cells(leaf, parent, [*boxes, *columns, Box()], block, blocks)
