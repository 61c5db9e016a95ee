"""What a pass left, cell by cell: everything first, then time bins, then (r, t) cells."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mfdiag.gradients.accumulate import Accumulator, sum_layers
from mfdiag.gradients.cells import Box
from mfdiag.gradients.moments import Moments, scalar_replicates
from mfdiag.gradients.sample_pass import PassResult

__all__ = ["moments_by_cell", "scalars_by_cell"]


def moments_by_cell(
    measured: PassResult, accumulator: Accumulator, by_layer: bool = False
) -> Iterator[tuple[Box, str, Moments]]:
    """(cell, layer, replicates): `all` layers together and, if asked for, one by one."""
    for cell, layers in sorted(accumulator.moments.items(), reverse=True):
        if measured.reported(cell):
            box = measured.cells.boxes[cell]
            yield box, "all", sum_layers(layers).replicates()
            for layer, moments in layers.items() if by_layer else ():
                yield box, layer, moments.replicates()


def scalars_by_cell(
    measured: PassResult, values: dict[str, np.ndarray]
) -> Iterator[tuple[Box, dict[str, np.ndarray], np.ndarray]]:
    """(cell, name -> replicates [1 + g] of the mean, block sizes [g]) of per-sample numbers [N]."""
    stacked = np.stack(list(values.values()), axis=1)
    for cell in sorted(measured.gradient.moments, reverse=True):
        if measured.reported(cell):
            inside = measured.cells.members(cell)
            means, count = scalar_replicates(stacked[inside], measured.cells.block[inside], measured.cells.blocks)
            yield measured.cells.boxes[cell], dict(zip(values, means.T, strict=True)), count
