"""From chunks of factors to block moments, per layer and per cell of times, in one pass.

Samples arrive ordered by cell, so that only the cells now open hold summed gradients: a cell that is complete leaves
its block moments behind and hands its sums to the cell above it (time bin, then everything).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfdiag.gradients.cells import Cells
from mfdiag.gradients.concatenated import Concatenated
from mfdiag.gradients.factors import Factors, Fold, Outer
from mfdiag.gradients.moments import BlockMoments

__all__ = ["Accumulator", "layer_of", "sum_layers"]

_EXACT_BYTES = 512 << 20  # block sums up to this size are kept whole
_FOLDED_BYTES = 48 << 20  # beyond it, they are sketched to this size


def layer_of(parameter: str) -> str:
    """Layer of a parameter: its name without the last part; a bare parameter is its own layer."""
    return parameter.rpartition(".")[0] or parameter


@dataclass
class _Open:
    """Sums of one open cell: per parameter, block sums [B, C, s] and, where these are folded, the exact sum [C, P]."""

    waiting: int  # samples (or, above the leaves, children) still to come
    blocks: dict[str, Tensor] = field(default_factory=dict)
    exact: dict[str, Tensor] = field(default_factory=dict)
    gram: dict[str, Tensor] = field(default_factory=dict)  # per layer [B, groups, K, K]
    count: np.ndarray | None = None


class Accumulator:
    """Takes (parameter, factors) of consecutive samples in `cells.order`; yields `moments[cell][layer]`.

    `parameters` maps names to their number of entries. `diagonal` [N, groups, K] keeps each sample's squared gradient
    norm over all layers (in the samples' own numbering).
    """

    def __init__(self, cells: Cells, parameters: dict[str, int], groups: int, size: int) -> None:
        self.cells, self.parameters, self.groups, self.size = cells, parameters, groups, size
        self.order = cells.order
        self.position = 0
        self.diagonal = torch.zeros(len(cells.leaf), groups, size, dtype=torch.float64)
        self.moments: dict[int, dict[str, BlockMoments]] = {}
        self._everything: _Open | None = None
        per_entry = cells.blocks * groups * size * 4
        self.folding = sum(parameters.values()) * per_entry > _EXACT_BYTES
        self.width = self._fold_width(parameters, per_entry) if self.folding else 0
        self._folds: dict[str, tuple[Fold, Fold]] = {}
        children = np.bincount([p for p in cells.parent if p >= 0], minlength=len(cells.parent))
        samples = np.bincount(cells.leaf, minlength=len(cells.parent))
        self._open = {c: _Open(int(children[c] or samples[c])) for c in range(len(cells.parent))}
        for cell, node in list(self._open.items()):
            if cell in self._open and not node.waiting:
                self._close(cell)

    @staticmethod
    def _fold_width(parameters: dict[str, int], per_entry: int) -> int:
        """Widest power of two whose square per parameter keeps all folded block sums within the budget."""
        width = 256
        while width > 8 and sum(min(p, width**2) for p in parameters.values()) * per_entry > _FOLDED_BYTES:
            width //= 2
        return width

    def add(self, samples: int, factors: Iterable[tuple[str, Factors]]) -> None:
        """The next `samples` of the order; `factors` hold them along their sample axis."""
        rows = self.order[self.position : self.position + samples]
        self.position += samples
        leaf, block = self.cells.leaf[rows], self.cells.block[rows]
        runs = _runs(leaf)
        segments = [(a + start, b + start) for start, stop in runs for a, b in _runs(block[start:stop])]
        begins = np.array([start for start, _ in segments], dtype=int)
        cells = [(int(leaf[begins[a]]), a, b, _rows(block[begins[a:b]])) for a, b in _runs(leaf[begins])]
        norms = torch.zeros(samples, self.groups, self.size, dtype=torch.float64)
        grams: dict[str, Tensor] = {}
        for name, found in factors:
            gram = found.gram(self.groups).cpu()
            _add(grams, layer_of(name), gram)
            for start, stop in runs if self.folding else ():
                exact = self._open[int(leaf[start])].exact
                if name in exact and isinstance(found, Outer):
                    found.add_total(exact[name], start, stop)
                else:
                    _add(exact, name, found.total(start, stop))
            folded = self._fold(name, found) if self.folding else found
            totals = folded.totals(segments)
            for cell, first, last, at in cells:
                node = self._open[cell]
                if name not in node.blocks:
                    node.blocks[name] = totals.new_zeros(self.cells.blocks, *totals.shape[1:])
                node.blocks[name][at] += totals[first:last]
        for gram in grams.values():
            norms += gram.diagonal(dim1=-2, dim2=-1)
        self.diagonal[torch.as_tensor(rows)] = norms
        for start, stop in runs:
            node = self._open[int(leaf[start])]
            for layer, gram in grams.items():
                if layer not in node.gram:
                    node.gram[layer] = gram.new_zeros(self.cells.blocks, *gram.shape[1:])
                node.gram[layer].index_add_(0, torch.as_tensor(block[start:stop]), gram[start:stop])
            counted = np.bincount(block[start:stop], minlength=self.cells.blocks)
            node.count = counted if node.count is None else node.count + counted
            node.waiting -= stop - start
            if not node.waiting:
                self._close(int(leaf[start]))

    def state(self) -> dict[str, Any]:
        """Everything gathered so far, as tensors and numbers; `restore` on a new accumulator goes on from it."""
        opened = {
            cell: {**asdict(node), "count": None if node.count is None else torch.as_tensor(node.count)}
            for cell, node in self._open.items()
        }
        closed = {
            cell: {layer: moments.state() for layer, moments in layers.items()} for cell, layers in self.moments.items()
        }
        return {"position": self.position, "diagonal": self.diagonal, "open": opened, "closed": closed}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over a `state` of the same cells, parameters and cotangents."""
        self.position, self.diagonal = state["position"], state["diagonal"]
        self._open = {
            cell: _Open(**{**node, "count": None if node["count"] is None else node["count"].numpy()})
            for cell, node in state["open"].items()
        }
        self.moments = {
            cell: {layer: BlockMoments.of_state(kept) for layer, kept in layers.items()}
            for cell, layers in state["closed"].items()
        }

    def halves(self) -> tuple[BlockMoments, BlockMoments]:
        """All parameters' moments on every second block and on the others, once every sample is in."""
        assert self._everything is not None
        even, odd = (sum_layers(self._moments(self._everything, slice(k, None, 2))) for k in (0, 1))
        return even, odd

    def _fold(self, name: str, factors: Factors) -> Factors:
        if name not in self._folds:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            outer = factors.outer if isinstance(factors, Concatenated) else factors
            if isinstance(outer, Outer):
                sizes = [(outer.cotangents.shape[-1], self.width), (outer.inputs.shape[-1], self.width)]
            else:
                size = factors.total(0, 1).shape[-1]
                sizes = [(1, 1), (size, self.width**2)]
            left, right = (Fold(size, width, generator) for size, width in sizes)
            self._folds[name] = left, right
        return factors.folded(*self._folds[name])

    def _close(self, cell: int) -> None:
        node, parent = self._open.pop(cell), self.cells.parent[cell]
        if node.count is not None:
            self.moments[cell] = self._moments(node, slice(None))
        if parent < 0:
            self._everything = node
            return
        above = self._open[parent]
        if node.count is not None:
            for mine, theirs in ((node.blocks, above.blocks), (node.exact, above.exact), (node.gram, above.gram)):
                for name, sums in mine.items():
                    _add(theirs, name, sums)
            above.count = node.count if above.count is None else above.count + node.count
        above.waiting -= 1
        if not above.waiting:
            self._close(parent)

    def _moments(self, node: _Open, chosen: slice) -> dict[str, BlockMoments]:
        """Block moments by layer of the `chosen` blocks of a cell."""
        assert node.count is not None
        found: dict[str, BlockMoments] = {}
        for name, sums in node.blocks.items():
            split = sums[chosen].view(-1, self.groups, self.size, sums.shape[-1])
            total = split.sum(0)
            cross = torch.einsum("bgks,gls->bgkl", split, total).double()
            own = (split @ split.transpose(-1, -2)).double()
            if name in node.exact and chosen == slice(None):
                total = node.exact[name].view(self.groups, self.size, -1)
            norm = total.double() @ total.double().transpose(-1, -2)
            layer = layer_of(name)
            # the layer's Gram sums cover all its parameters: they come with the first
            gram = np.zeros(()) if layer in found else node.gram[layer][chosen].clone().numpy()
            one = BlockMoments(node.count[chosen], gram, *(a.cpu().numpy() for a in (own, cross, norm)))
            found[layer] = found[layer] + one if layer in found else one
        return found


def sum_layers(layers: dict[str, BlockMoments]) -> BlockMoments:
    """All parameters together."""
    first, *rest = layers.values()
    return sum(rest, start=first)


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Adds `value`, which the caller gives away."""
    if name in sums:
        sums[name] += value
    else:
        sums[name] = value


def _rows(blocks: np.ndarray) -> slice | list[int]:
    """An index of different `blocks` in ascending order: a slice, which costs nothing, where none is left out."""
    first, last = int(blocks[0]), int(blocks[-1])
    return slice(first, last + 1) if last - first + 1 == len(blocks) else blocks.tolist()


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """Half-open ranges of equal consecutive values."""
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(values)], strict=True))
