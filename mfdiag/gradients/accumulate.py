"""From chunks of factors to block moments, per layer and per cell of times, in one pass.

Samples arrive ordered by cell, so that only incomplete cells hold summed gradients. A complete cell is reduced to its
block moments, and its sums are added to its parent's (the bin of t, then the root). Where several processes share the
samples, each holds sums of its own samples of the incomplete leaves; rank 0 adds them when a leaf is complete.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfdiag.gradients.cells import Cells
from mfdiag.gradients.concatenated import Concatenated
from mfdiag.gradients.factors import Factors, Fold, NoGradient, Outer
from mfdiag.gradients.moments import PAIR_GROUPS, BlockMoments
from mfdiag.world import World, current_world

__all__ = ["Accumulator", "layer_of", "sum_layers"]

_EXACT_BYTES = 512 << 20  # block sums up to this size are stored exactly
_FOLDED_BYTES = 48 << 20  # larger ones are sketched down to this size
_FOLD_WIDTHS = (256, 128, 64, 32, 16, 8)
_FLOAT_BYTES = 4
_LEAF_BYTES = 64 << 20  # sums of the leaves that a chunk adds to; it ends where one more would exceed this
_LARGEST_GRAM = 64  # entries of a sample's Gram matrices that are stored, of 8 bytes each

Layout = dict[str, dict[str, tuple[tuple[int, ...], torch.dtype, str]]]
"""Kind of sums -> parameter or layer -> shape, dtype, type of device."""


def layer_of(parameter: str) -> str:
    """The layer of a parameter: its name without the last part. A parameter of the model itself is its own layer."""
    return parameter.rpartition(".")[0] or parameter


@dataclass
class _CellSums:
    """Sums of one incomplete cell. A pass checkpoint stores the fields under these names.

    Attributes:
        waiting: Samples (or, above the leaves, children) still to come.
        blocks: By parameter, block sums of the gradients, [B, C, s]; s is P, or less where they are folded.
        exact: By parameter, the sum of the gradients, [C, P]; only where `blocks` are folded.
        gram: By layer, block sums of the Gram matrices, [B, groups, K, K].
        count: Block sizes, [B]; None before the first sample.
    """

    waiting: int
    blocks: dict[str, Tensor] = field(default_factory=dict)
    exact: dict[str, Tensor] = field(default_factory=dict)
    gram: dict[str, Tensor] = field(default_factory=dict)
    count: np.ndarray | None = None


class Accumulator:
    """Takes (parameter, factors) of samples in `cells.order`, and leaves `moments[cell][layer]`.

    `add` takes samples between `position` and the next one to which `advance` goes on; only there cells are completed.

    `diagonal` [N, groups, K] holds each sample's squared gradient norm over all layers, by sample number, and
    `sample_gram` [N, groups, K, K] its Gram matrix; None if that would be large.

    Args:
        cells: The samples' cells and blocks.
        parameters: Number of entries by name.
        groups: Number of groups of cotangents.
        size: K, cotangents in a group.
    """

    def __init__(self, cells: Cells, parameters: dict[str, int], groups: int, size: int) -> None:
        self.cells, self.parameters, self.groups, self.size = cells, parameters, groups, size
        self.order = cells.order
        self.position = 0
        self.diagonal = torch.zeros(len(cells.leaf), groups, size, dtype=torch.float64)
        self.sample_gram: Tensor | None = None
        if groups * size**2 <= _LARGEST_GRAM:
            self.sample_gram = torch.zeros(len(cells.leaf), groups, size, size, dtype=torch.float64)
        self.moments: dict[int, dict[str, BlockMoments]] = {}
        self._root_sums: _CellSums | None = None
        entry_bytes = cells.blocks * groups * size * _FLOAT_BYTES
        self.folding = sum(parameters.values()) * entry_bytes > _EXACT_BYTES
        self.width = _fold_width(parameters, entry_bytes) if self.folding else 0
        leaf_bytes = sum(parameters.values()) * (groups * size * _FLOAT_BYTES if self.folding else entry_bytes)
        self._leaves_at_once = max(1, _LEAF_BYTES // (leaf_bytes or 1))
        self._folds: dict[str, tuple[Fold, Fold]] = {}
        self.layout: Layout | None = None  # of the sums of a leaf; None before the first sample
        self._leaves = set(cells.leaf.tolist())
        children = np.bincount([p for p in cells.parent if p >= 0], minlength=len(cells.parent))
        samples = np.bincount(cells.leaf, minlength=len(cells.parent))
        self._incomplete = {c: _CellSums(int(children[c] or samples[c])) for c in range(len(cells.parent))}
        for cell, sums in list(self._incomplete.items()):
            if cell in self._incomplete and not sums.waiting:
                self._complete(cell)

    def add(self, rows: np.ndarray, factors: Iterable[tuple[str, Factors]]) -> None:
        """Add samples.

        Args:
            rows: Their numbers, consecutive in the order.
            factors: Theirs along the sample axis, by parameter.
        """
        leaf, block = self.cells.leaf[rows], self.cells.block[rows]
        runs = _runs(leaf)  # samples of one cell
        segments = [(a + start, b + start) for start, stop in runs for a, b in _runs(block[start:stop])]  # and block
        begins = np.array([start for start, _ in segments], dtype=int)
        # (cell, its first segment, the one after its last, their blocks)
        cells = [(int(leaf[begins[a]]), a, b, torch.as_tensor(block[begins[a:b]])) for a, b in _runs(leaf[begins])]
        sample_gram = torch.zeros(len(rows), self.groups, self.size, self.size, dtype=torch.float64)
        grams: dict[str, Tensor] = {}
        for name, gradients in factors:
            if self.folding:
                gram, totals = gradients.gram(self.groups), self._fold(name, gradients).totals(segments)
            else:
                gram, totals = gradients.gram_and_totals(self.groups, segments)
            _add(grams, layer_of(name), gram.cpu())
            for start, stop in runs if self.folding else ():
                exact = self._incomplete[int(leaf[start])].exact
                if name in exact and isinstance(gradients, NoGradient):
                    continue
                if name in exact and isinstance(gradients, Outer):
                    gradients.add_total(exact[name], start, stop)
                else:
                    _add(exact, name, gradients.total(start, stop))
            for cell, first, stop, block_rows in cells:
                blocks = self._incomplete[cell].blocks
                if name not in blocks:
                    blocks[name] = totals.new_zeros(self.cells.blocks, *totals.shape[1:])
                if not isinstance(gradients, NoGradient):
                    blocks[name].index_add_(0, block_rows.to(totals.device), totals[first:stop])
        for gram in grams.values():
            sample_gram += gram
        self.diagonal[torch.as_tensor(rows)] = sample_gram.diagonal(dim1=-2, dim2=-1)
        if self.sample_gram is not None:
            self.sample_gram[torch.as_tensor(rows)] = sample_gram
        for start, stop in runs:
            sums = self._incomplete[int(leaf[start])]
            for layer, gram in grams.items():
                if layer not in sums.gram:
                    sums.gram[layer] = gram.new_zeros(self.cells.blocks, *gram.shape[1:])
                sums.gram[layer].index_add_(0, torch.as_tensor(block[start:stop]), gram[start:stop])
        if self.layout is None:
            self.layout = _layout(self._incomplete[int(leaf[0])])

    @property
    def limit(self) -> int:
        """The position that the next stretch may reach: up to it, samples lie in so few leaves that their sums fit."""
        leaf = self.cells.leaf[self.order[self.position :]]
        _, stop = _runs(leaf)[: self._leaves_at_once][-1]
        return self.position + stop

    def advance(self, stop: int) -> None:
        """Complete the cells that end before the position `stop`, once every process has added its samples up to it."""
        world = current_world()
        complete = self._count(stop)
        for cell, sums in zip(complete, self._merged(complete, world), strict=True):
            self._incomplete[cell] = sums
            self._complete(cell, world.rank == 0)

    def skip(self, stop: int) -> None:
        """Go on from the position `stop` in a process that holds no sums of the samples before."""
        for cell in self._count(stop):
            self._complete(cell, False)

    def _count(self, stop: int) -> list[int]:
        """Count the samples of all processes up to `stop`; returns the leaves that are complete."""
        rows = self.order[self.position : stop]
        self.position = stop
        leaf, block = self.cells.leaf[rows], self.cells.block[rows]
        complete = []
        for start, end in _runs(leaf):
            cell = int(leaf[start])
            sums, count = self._incomplete[cell], np.bincount(block[start:end], minlength=self.cells.blocks)
            sums.count = count if sums.count is None else sums.count + count
            sums.waiting -= end - start
            if not sums.waiting:
                complete.append(cell)
        return complete

    def _merged(self, leaves: list[int], world: World) -> list[_CellSums]:
        """The sums of leaves over all processes, on rank 0; those of this process stay as they are."""
        own = [self._incomplete[cell] for cell in leaves]
        if world.size == 1 or not leaves:
            return own
        assert self.layout is not None
        places = [(k, kind, name) for k in range(len(own)) for kind, named in self.layout.items() for name in named]
        tensors = []
        for k, kind, name in places:
            shape, dtype, device = self.layout[kind][name]
            tensor = getattr(own[k], kind).get(name)
            tensors.append(torch.zeros(shape, dtype=dtype, device=device) if tensor is None else tensor)
        merged = [_CellSums(sums.waiting, count=sums.count) for sums in own]
        for (k, kind, name), tensor in zip(places, world.sums_on_first(tensors), strict=True):
            getattr(merged[k], kind)[name] = tensor
        return merged

    def share(self) -> None:
        """Give every process what all of them measured, once every sample is in."""
        world = current_world()
        if world.size == 1:
            return
        self.moments, per_sample = world.broadcast((self.moments, world.sums_on_first(self._per_sample)))
        self.diagonal = per_sample[0]
        self.sample_gram = per_sample[1] if len(per_sample) > 1 else None

    @property
    def _per_sample(self) -> list[Tensor]:
        """What is stored for each sample; zeros for samples of other processes."""
        return [self.diagonal] if self.sample_gram is None else [self.diagonal, self.sample_gram]

    def state(self) -> dict[str, Any]:
        """Everything accumulated so far, as tensors and numbers. After `restore`, a new accumulator continues.

        All processes call it together; rank 0 returns what all of them accumulated.
        """
        world = current_world()
        open_leaves = [c for c, sums in self._incomplete.items() if c in self._leaves and sums.count is not None]
        merged = dict(zip(open_leaves, self._merged(open_leaves, world), strict=True))
        diagonal, *sample_gram = world.sums_on_first(self._per_sample)
        incomplete = {
            cell: {**vars(sums), "count": None if sums.count is None else torch.as_tensor(sums.count)}
            for cell, sums in (self._incomplete | merged).items()
        }
        complete = {
            cell: {layer: _to_tensors(moments) for layer, moments in layers.items()}
            for cell, layers in self.moments.items()
        }
        return {
            "position": self.position,
            "diagonal": diagonal,
            "sample_gram": sample_gram[0] if sample_gram else None,
            "open": incomplete,
            "closed": complete,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state` of the same cells, parameters and cotangents."""
        self.position, self.diagonal, self.sample_gram = state["position"], state["diagonal"], state["sample_gram"]
        self._incomplete = {
            cell: _CellSums(**{**sums, "count": None if sums["count"] is None else sums["count"].numpy()})
            for cell, sums in state["open"].items()
        }
        self.moments = {
            cell: {layer: _from_tensors(tensors) for layer, tensors in layers.items()}
            for cell, layers in state["closed"].items()
        }

    def halves(self) -> tuple[BlockMoments, BlockMoments]:
        """Moments of all parameters on the even and on the odd blocks, once every sample is in."""
        return current_world().on_first(self._halves)

    def _halves(self) -> tuple[BlockMoments, BlockMoments]:
        assert self._root_sums is not None
        even, odd = (sum_layers(self._moments(self._root_sums, slice(k, None, 2))) for k in (0, 1))
        return even, odd

    def _fold(self, name: str, factors: Factors) -> Factors:
        if name not in self._folds:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            outer = factors.outer if isinstance(factors, Concatenated) else factors
            if isinstance(outer, Outer):
                rows, columns = outer.sides
                sizes = [(rows.shape[-1], self.width), (columns.shape[-1], self.width)]
            else:
                size = factors.total(0, 1).shape[-1]
                sizes = [(1, 1), (size, self.width**2)]
            left, right = (Fold(size, width, generator) for size, width in sizes)
            self._folds[name] = left, right
        return factors.folded(*self._folds[name])

    def _complete(self, cell: int, holds_sums: bool = True) -> None:
        """Reduces the sums of a cell to its moments, and adds them to its parent's, in the process that holds them."""
        sums, parent = self._incomplete.pop(cell), self.cells.parent[cell]
        if not holds_sums:
            sums = _CellSums(sums.waiting)
        if sums.count is not None:
            self.moments[cell] = self._moments(sums, slice(None))
        if parent < 0:
            self._root_sums = sums
            return
        above = self._incomplete[parent]
        if sums.count is not None:
            for own, parents in ((sums.blocks, above.blocks), (sums.exact, above.exact), (sums.gram, above.gram)):
                for name, value in own.items():
                    _add(parents, name, value)
            above.count = sums.count if above.count is None else above.count + sums.count
        above.waiting -= 1
        if not above.waiting:
            self._complete(parent, holds_sums)

    def _moments(self, sums: _CellSums, selection: slice) -> dict[str, BlockMoments]:
        """Moments by layer of some of a cell's blocks."""
        assert sums.count is not None
        moments: dict[str, BlockMoments] = {}
        count = sums.count[selection]
        group_of, sizes = _pair_groups(count)
        for name, blocks in sums.blocks.items():
            split = blocks[selection].view(-1, self.groups, self.size, blocks.shape[-1])
            summed = split.new_zeros(len(sizes), *split.shape[1:]).index_add_(0, group_of.to(split.device), split)
            total = split.sum(0)
            cross = torch.einsum("bgks,gls->bgkl", split, total).double()
            own = (split @ split.transpose(-1, -2)).double()
            products = torch.einsum("agks,bgls->abgkl", summed, summed).double()
            if name in sums.exact and selection == slice(None):
                total = sums.exact[name].view(self.groups, self.size, -1)
            norm = total.double() @ total.double().transpose(-1, -2)
            layer = layer_of(name)
            # the layer's Gram sums cover all its parameters: they are added with the first
            gram = np.zeros(()) if layer in moments else sums.gram[layer][selection].clone().numpy()
            arrays = [a.cpu().numpy() for a in (own, cross, norm, products)]
            of_parameter = BlockMoments(count, gram, arrays[0], arrays[1], arrays[2], arrays[3], sizes)
            moments[layer] = moments[layer] + of_parameter if layer in moments else of_parameter
        return moments


def _pair_groups(count: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """The group of consecutive blocks that each block [B] belongs to, about equal in samples, and the groups' sizes."""
    filled = count > 0
    middle = (np.cumsum(count) - count / 2)[filled] / count.sum()
    _, group = np.unique((middle * PAIR_GROUPS).astype(int), return_inverse=True)
    group_of = np.zeros(len(count), dtype=int)
    group_of[filled] = group
    return torch.as_tensor(group_of), np.bincount(group, count[filled])


def sum_layers(layers: dict[str, BlockMoments]) -> BlockMoments:
    """The moments of all parameters together."""
    first, *rest = layers.values()
    return sum(rest, start=first)


def _fold_width(parameters: dict[str, int], entry_bytes: int) -> int:
    """The largest width whose square per parameter fits all folded block sums into the budget, else the least."""

    def fits(width: int) -> bool:
        return sum(min(p, width**2) for p in parameters.values()) * entry_bytes <= _FOLDED_BYTES

    return next(filter(fits, _FOLD_WIDTHS), _FOLD_WIDTHS[-1])


def _layout(sums: _CellSums) -> Layout:
    """The layout of the sums of one leaf."""
    return {
        kind: {name: (tuple(t.shape), t.dtype, t.device.type) for name, t in getattr(sums, kind).items()}
        for kind in ("blocks", "exact", "gram")
    }


def _to_tensors(moments: BlockMoments) -> list[Tensor]:
    """The arrays of `moments` in a form that `torch.load(weights_only=True)` accepts."""
    return [torch.as_tensor(getattr(moments, entry.name)) for entry in fields(moments)]


def _from_tensors(tensors: list[Tensor]) -> BlockMoments:
    return BlockMoments(*(tensor.numpy() for tensor in tensors))


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Adds `value`, which the caller must not use afterwards."""
    if name in sums:
        sums[name] += value
    else:
        sums[name] = value


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """Half-open ranges of equal consecutive values."""
    if not len(values):
        return []
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(values)], strict=True))
