"""Gradients of one parameter from several uses, added; and from several sources, concatenated along cotangents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mfdiag.gradients.factors import Dense, Factors, Fold, Mixed, Outer, folded_dense, slices

__all__ = ["Concatenated", "sum_over_uses"]


def sum_over_uses(parts: Sequence[Factors], samples: int, entries: int) -> Factors:
    """Add the gradients [C, n, P] of the uses of one parameter.

    Args:
        parts: The factors of each use.
        samples: n.
        entries: C P.

    Returns:
        The sum, in factored form where all uses are of one kind.
    """
    if len(parts) == 1:
        return parts[0]
    dense = [part for part in parts if isinstance(part, Dense)]
    outer = [part for part in parts if isinstance(part, Outer)]
    if len(dense) == len(parts):
        return Dense(torch.stack([part.values for part in dense]).sum(0))
    if len(outer) == len(parts) and len({part.inputs_first for part in outer}) == 1:
        inputs, cotangents = torch.cat([p.inputs for p in outer], 1), torch.cat([p.cotangents for p in outer], 2)
        return Outer(inputs, cotangents, outer[0].inputs_first)
    return Mixed(tuple(parts), samples, 4 * entries)


@dataclass(frozen=True)
class Concatenated(Factors):
    """Factors [C_1, n, P], [C_2, n, P], ... as one of [C_1 + C_2 + ..., n, P]; `samples` is n, `entries` P."""

    parts: tuple[Factors, ...]
    samples: int
    entries: int

    def gram(self, groups: int) -> Tensor:
        assert groups == 1, "sources are concatenated within one group"
        blocks: list[list[Tensor]] = [[] for _ in self.parts]
        for i, left in enumerate(self.parts):
            for j, right in enumerate(self.parts):
                if j < i:
                    blocks[i].append(blocks[j][i].transpose(-1, -2))
                elif i == j:
                    blocks[i].append(left.gram(1)[:, 0])
                else:
                    blocks[i].append(self._cross(left, right))
        return torch.cat([torch.cat(row, -1) for row in blocks], -2)[:, None]

    def total(self, start: int, stop: int) -> Tensor:
        return torch.cat([part.total(start, stop) for part in self.parts])

    def totals(self, bounds: Sequence[tuple[int, int]]) -> Tensor:
        return torch.cat([part.totals(bounds) for part in self.parts], 1)

    def dense(self, start: int, stop: int) -> Tensor:
        return torch.cat([part.dense(start, stop) for part in self.parts])

    def combination(self, selection: slice, weights: Tensor) -> Tensor:
        split = weights.split([len(part.total(0, 1)) for part in self.parts])
        return torch.stack([part.combination(selection, w) for part, w in zip(self.parts, split, strict=True)]).sum(0)

    @property
    def outer(self) -> Outer | None:
        """The first part if all are outer products of one orientation, which take the same folds; else None."""
        outer = [part for part in self.parts if isinstance(part, Outer)]
        same_folds = len(outer) == len(self.parts) and len({part.inputs_first for part in outer}) == 1
        return outer[0] if same_folds else None

    def folded(self, left: Fold, right: Fold) -> Factors:
        if self.outer is not None:
            return Concatenated(tuple(part.folded(left, right) for part in self.parts), self.samples, self.entries)
        cotangents = sum(len(part.total(0, 1)) for part in self.parts)
        return folded_dense(self, left, right, self.samples, 4 * self.entries * cotangents)

    def _cross(self, left: Factors, right: Factors) -> Tensor:
        """<G_k, G_l> for k in the left part and l in the right part: [n, C_left, C_right], float64."""
        if isinstance(left, Outer) and isinstance(right, Outer) and _by_tokens(left, right):
            # sum over token pairs of (a a'^T) * (g_k g'_l^T), without either gradient
            mixed = (left.inputs @ right.inputs.transpose(1, 2)) @ right.cotangents
            rows, columns = (g.transpose(0, 1).flatten(2) for g in (left.cotangents, mixed))
            return (rows @ columns.transpose(1, 2)).double()
        cotangents = sum(len(part.total(0, 1)) for part in (left, right))
        products = []
        for start, stop in slices(self.samples, 4 * self.entries * cotangents):
            rows, columns = (part.dense(start, stop).transpose(0, 1) for part in (left, right))
            products.append((rows @ columns.transpose(1, 2)).double())
        return torch.cat(products)


def _by_tokens(left: Outer, right: Outer) -> bool:
    """Whether products of token pairs apply, and cost less than multiplying out both gradients."""
    if left.inputs_first != right.inputs_first:
        return False
    (rows, _, left_tokens, q), (columns, _, right_tokens, _) = left.cotangents.shape, right.cotangents.shape
    p = left.inputs.shape[-1]
    pairs = left_tokens * right_tokens * (p + columns * q) + rows * columns * left_tokens * q
    return pairs <= (rows * left_tokens + columns * right_tokens + rows * columns) * p * q
