"""Per-sample gradients of one parameter as the factors of the chain rule, never multiplied out for a whole batch.

A `Factors` holds the gradients G[c, i] of n samples and C cotangents. It gives the per-sample Gram matrices
<G[c, i], G[c', i]> (docs/theory.md#layer-gram) and sums of G over a run of samples. Cotangents come in `groups` of
equal size. Gram matrices stay within a group: their shape is [n, groups, K, K] with C = groups * K.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Dense",
    "Factors",
    "Fold",
    "Mixed",
    "NoGradient",
    "Outer",
    "PulledBack",
    "folded_dense",
    "gram_of",
    "pulled_back",
    "slices",
]

_DENSE_BYTES = 64 << 20  # memory of the samples that are multiplied out at a time
_MATRIX_ENTRIES = 1 << 20  # size up to which a fold is a matrix product
_ENTRY_COST = 64  # multiply-adds that take as long as an entry of a gradient: written, multiplied, and added


def gram_of(flat: Tensor, groups: int) -> Tensor:
    """Gram matrices of flat [C, n, P] -> [n, groups, K, K], float64."""
    split = flat.view(groups, len(flat) // groups, *flat.shape[1:]).permute(2, 0, 1, 3)
    return (split @ split.transpose(-1, -2)).double()


class Fold:
    """Sum of randomly signed segments of the last axis: `width` numbers whose inner products are unbiased.

    Used only for standard errors of layers whose block sums would not fit in memory.
    """

    def __init__(self, size: int, width: int, generator: torch.Generator) -> None:
        self.width, self.size = min(width, size), size
        segments = -(-size // max(self.width, 1))
        self.signs = torch.randint(0, 2, (segments, self.width), generator=generator) * 2 - 1
        self.matrix: Tensor | None = None
        if size * self.width <= _MATRIX_ENTRIES:  # a product makes no signed copy of its input
            entry = torch.arange(size)
            self.matrix = torch.zeros(size, self.width)
            self.matrix[entry, entry % self.width] = self.signs.flatten()[:size].float()

    def __call__(self, x: Tensor) -> Tensor:
        if self.width == self.size:
            return x
        if self.matrix is not None:
            return x @ self.matrix.to(x)
        if self.size % self.width:
            x = torch.nn.functional.pad(x, (0, -self.size % self.width))
        return (x.unflatten(-1, (-1, self.width)) * self.signs.to(x)).sum(-2)


class Factors(Protocol):
    """Gradients [C, n, *parameter shape] of one parameter."""

    def gram(self, groups: int) -> Tensor:
        """Per-sample Gram matrices [n, groups, K, K], float64."""
        ...

    def total(self, start: int, stop: int) -> Tensor:
        """Sum over samples start..stop, flattened: [C, P]."""
        ...

    def totals(self, bounds: Sequence[tuple[int, int]]) -> Tensor:
        """`total` of each of S adjacent runs: [S, C, P]."""
        ...

    def gram_and_totals(self, groups: int, bounds: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """`gram` and `totals`, sharing what both compute."""
        return self.gram(groups), self.totals(bounds)

    def dense(self, start: int, stop: int) -> Tensor:
        """Multiplied out: [C, stop - start, P]."""
        ...

    def combination(self, selection: slice, weights: Tensor) -> Tensor:
        """Sum over cotangents and the m selected samples with weights [C, m]: [P]."""
        ...

    def folded(self, left: Fold, right: Fold) -> Factors:
        """Sketches of the gradients: `left` folds rows and `right` columns; `right` alone, where `left` has size 1."""
        ...


@dataclass(frozen=True)
class Dense(Factors):
    """Gradients multiplied out, [C, n, P]: of biases, norms and bare parameters, and from the reference."""

    values: Tensor

    def gram(self, groups: int) -> Tensor:
        return gram_of(self.values, groups)

    def total(self, start: int, stop: int) -> Tensor:
        return self.values[:, start:stop].sum(1)

    def totals(self, bounds: Sequence[tuple[int, int]]) -> Tensor:
        if (length := _common_length(bounds)) is None:
            return _run_by_run(self, bounds)
        run = self.values[:, bounds[0][0] : bounds[-1][1]]
        return run.unflatten(1, (-1, length)).sum(2).transpose(0, 1)

    def dense(self, start: int, stop: int) -> Tensor:
        return self.values[:, start:stop]

    def combination(self, selection: slice, weights: Tensor) -> Tensor:
        return torch.einsum("cn,cnp->p", weights, self.values[:, selection])

    def folded(self, left: Fold, right: Fold) -> Dense:
        if left.size == 1:
            return Dense(right(self.values))
        columns = right(self.values.unflatten(-1, (left.size, right.size)))
        return Dense(left(columns.transpose(-1, -2)).transpose(-1, -2).flatten(-2))


@dataclass(frozen=True)
class Outer(Factors):
    """Sums over tokens of outer products: G[c, i] = sum_T g[c, i, T] (x) a[i, T], flattened rows first.

    inputs a [n, T, p], cotangents g [C, n, T, q]; parameter shape [q, p], or [p, q] where `inputs_first` (embeddings).
    Raises ValueError where the two differ in their tokens.
    """

    inputs: Tensor
    cotangents: Tensor
    inputs_first: bool = False

    def __post_init__(self) -> None:
        if self.inputs.shape[1] != self.cotangents.shape[2]:
            raise ValueError("inputs and cotangents must have the same tokens")

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        """What has the rows of the parameter as its last axis, and what has the columns."""
        return (self.inputs, self.cotangents) if self.inputs_first else (self.cotangents, self.inputs)

    def gram(self, groups: int) -> Tensor:
        a, g = self.inputs, self.cotangents
        n, tokens, p = a.shape
        k, q = len(g) // groups, g.shape[-1]
        if tokens == 0:
            return g.new_zeros(n, groups, k, k, dtype=torch.float64)
        if tokens == 1:
            return gram_of(g[:, :, 0], groups) * a.double().square().sum((1, 2))[:, None, None, None]
        # <G_k, G_l> = sum over token pairs (a a^T) * (g_k g_l^T), or multiply out: whichever costs less
        if tokens * (p + groups * k * q) + groups * k * k * q > groups * k * p * q * (1 + k / tokens):
            return _sliced_gram(self, groups, n, len(g) * p * q * a.element_size())
        flat = g.view(groups, k, n, tokens, q)
        paired = (a @ a.transpose(1, 2)) @ flat
        left, right = (x.permute(2, 0, 1, 3, 4).flatten(3) for x in (flat, paired))
        return (left @ right.transpose(-1, -2)).double()

    def total(self, start: int, stop: int) -> Tensor:
        a = self.inputs[start:stop].flatten(0, 1)
        g = self.cotangents[:, start:stop].flatten(1, 2)
        return (a.T @ g if self.inputs_first else g.transpose(1, 2) @ a).flatten(1)

    def add_total(self, sums: Tensor, start: int, stop: int) -> None:
        """Add `total` to sums [C, P] in place, so that a large weight's sums are written once.

        Args:
            sums: The sums so far, [C, P].
            start: First sample.
            stop: The sample after the last.
        """
        a = self.inputs[start:stop].flatten(0, 1).expand(len(self.cotangents), -1, -1)
        g = self.cotangents[:, start:stop].flatten(1, 2)
        left, right = (a, g) if self.inputs_first else (g, a)
        sums.view(len(g), left.shape[-1], -1).baddbmm_(left.transpose(1, 2), right)

    def totals(self, bounds: Sequence[tuple[int, int]]) -> Tensor:
        if (length := _common_length(bounds)) is None:
            return _run_by_run(self, bounds)
        run = slice(bounds[0][0], bounds[-1][1])
        a = self.inputs[run].unflatten(0, (-1, length)).flatten(1, 2)  # [S, length * T, p]
        g = self.cotangents[:, run].unflatten(1, (-1, length)).flatten(2, 3)
        sums = a.transpose(1, 2) @ g if self.inputs_first else g.transpose(2, 3) @ a
        return sums.flatten(2).transpose(0, 1)

    def gram_and_totals(self, groups: int, bounds: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        (c, n, tokens, q), p = self.cotangents.shape, self.inputs.shape[-1]
        # the totals cost tokens * c * p * q anyway, which also multiplies out: the alternatives add only these
        by_token_pairs = tokens * (tokens * (p + c * q) + c * c // groups * q)
        if not c * p * q or by_token_pairs < _ENTRY_COST * c * p * q:
            return self.gram(groups), self.totals(bounds)
        return _sliced_gram_and_totals(self, groups, bounds, n, c * p * q * self.inputs.element_size())

    def dense(self, start: int, stop: int) -> Tensor:
        a, g = self.inputs[start:stop], self.cotangents[:, start:stop]
        if self.inputs_first:
            return (a.transpose(1, 2) @ g).flatten(2)
        rows = g.permute(1, 0, 3, 2).flatten(1, 2)  # of all cotangents: one large product for each sample
        return (rows @ a).view(len(a), len(g), -1).transpose(0, 1)

    def combination(self, selection: slice, weights: Tensor) -> Tensor:
        a = self.inputs[selection].flatten(0, 1)
        g = torch.einsum("cn,cntq->ntq", weights, self.cotangents[:, selection]).flatten(0, 1)
        return (a.to(g).T @ g if self.inputs_first else g.T @ a).flatten()

    def folded(self, left: Fold, right: Fold) -> Factors:
        rows, columns = self.sides
        if (left.size, right.size) == (rows.shape[-1], columns.shape[-1]):
            rows, columns = left(rows), right(columns)
            return Outer(*((rows, columns) if self.inputs_first else (columns, rows)), self.inputs_first)
        entries = len(self.cotangents) * rows.shape[-1] * columns.shape[-1]
        return folded_dense(self, left, right, len(self.inputs), self.cotangents.element_size() * entries)


@dataclass(frozen=True)
class Mixed(Factors):
    """One parameter with several uses of different kinds (tied weights): the sum of their gradients.

    `sample_bytes` is the size of one sample's gradients for all cotangents, multiplied out.
    """

    parts: tuple[Factors, ...]
    samples: int
    sample_bytes: int

    def gram(self, groups: int) -> Tensor:
        return _sliced_gram(self, groups, self.samples, self.sample_bytes)

    def total(self, start: int, stop: int) -> Tensor:
        return torch.stack([part.total(start, stop) for part in self.parts]).sum(0)

    def totals(self, bounds: Sequence[tuple[int, int]]) -> Tensor:
        return torch.stack([part.totals(bounds) for part in self.parts]).sum(0)

    def gram_and_totals(self, groups: int, bounds: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        return _sliced_gram_and_totals(self, groups, bounds, self.samples, self.sample_bytes)

    def dense(self, start: int, stop: int) -> Tensor:
        return torch.stack([part.dense(start, stop) for part in self.parts]).sum(0)

    def combination(self, selection: slice, weights: Tensor) -> Tensor:
        return torch.stack([part.combination(selection, weights) for part in self.parts]).sum(0)

    def folded(self, left: Fold, right: Fold) -> Factors:
        return folded_dense(self, left, right, self.samples, self.sample_bytes)


@dataclass(frozen=True)
class PulledBack(Factors):
    """Gradients of a parameter from those of a tensor that is made from it: a linear map of each.

    Attributes:
        inner: Gradients of the tensor.
        pull: From gradients [..., entries of the tensor] to those [..., P] of the parameter.
        samples: n.
        sample_bytes: Size of one sample's gradients for all cotangents, multiplied out.
    """

    inner: Factors
    pull: Callable[[Tensor], Tensor]
    samples: int
    sample_bytes: int

    def gram(self, groups: int) -> Tensor:
        return _sliced_gram(self, groups, self.samples, self.sample_bytes)

    def total(self, start: int, stop: int) -> Tensor:
        return self.pull(self.inner.total(start, stop))  # the map is linear

    def totals(self, bounds: Sequence[tuple[int, int]]) -> Tensor:
        return self.pull(self.inner.totals(bounds))

    def gram_and_totals(self, groups: int, bounds: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        return _sliced_gram_and_totals(self, groups, bounds, self.samples, self.sample_bytes)

    def dense(self, start: int, stop: int) -> Tensor:
        return self.pull(self.inner.dense(start, stop))

    def combination(self, selection: slice, weights: Tensor) -> Tensor:
        return self.pull(self.inner.combination(selection, weights))

    def folded(self, left: Fold, right: Fold) -> Factors:
        return folded_dense(self, left, right, self.samples, self.sample_bytes)


def pulled_back(factors: Factors, tensor: Tensor, parameter: Tensor, samples: int, cotangents: int) -> Factors:
    """Turn the gradients of a tensor into those of a parameter that it is made from.

    Args:
        factors: Per-sample gradients of the tensor, [C, n, entries].
        tensor: The tensor, with a graph to the parameter.
        parameter: The parameter; it requires a gradient.
        samples: n.
        cotangents: C.

    Returns:
        Per-sample gradients of the parameter, in factored form where the two hold the same numbers.
    """
    same_memory = tensor.data_ptr() == parameter.data_ptr() and tensor.numel() == parameter.numel()
    if tensor is parameter or (same_memory and tensor.is_contiguous() and parameter.is_contiguous()):
        return factors
    transposed = same_memory and tensor.ndim == 2 and tensor.mT.is_contiguous() and parameter.is_contiguous()
    if transposed and isinstance(factors, Outer):
        return Outer(factors.inputs, factors.cotangents, not factors.inputs_first)

    def pull(gradients: Tensor) -> Tensor:
        flat = gradients.reshape(-1, *tensor.shape)
        (pulled,) = torch.autograd.grad(
            tensor, parameter, flat, retain_graph=True, is_grads_batched=True, materialize_grads=True
        )
        return pulled.reshape(*gradients.shape[:-1], -1)

    if isinstance(factors, Dense):
        return Dense(pull(factors.values))
    size = max(tensor.numel(), parameter.numel()) * cotangents * tensor.element_size()
    return PulledBack(factors, pull, samples, size)


@dataclass(frozen=True)
class NoGradient(Factors):
    """Gradients [C, n, P] that are all zero, without memory for them."""

    cotangents: int
    samples: int
    entries: int
    like: Tensor

    def _zeros(self, *shape: int) -> Tensor:
        return self.like.new_zeros(()).expand(*shape)

    def gram(self, groups: int) -> Tensor:
        k = self.cotangents // groups
        return self.like.new_zeros(self.samples, groups, k, k, dtype=torch.float64)

    def total(self, start: int, stop: int) -> Tensor:
        return self.like.new_zeros(self.cotangents, self.entries)  # others are added to it in place

    def totals(self, bounds: Sequence[tuple[int, int]]) -> Tensor:
        return self._zeros(len(bounds), self.cotangents, self.entries)

    def dense(self, start: int, stop: int) -> Tensor:
        return self._zeros(self.cotangents, stop - start, self.entries)

    def combination(self, selection: slice, weights: Tensor) -> Tensor:
        return self._zeros(self.entries)

    def folded(self, left: Fold, right: Fold) -> NoGradient:
        return NoGradient(self.cotangents, self.samples, left.width * right.width, self.like)


def _common_length(bounds: Sequence[tuple[int, int]]) -> int | None:
    """The length of the runs if it is the same for all, so that they can be summed at once."""
    lengths = {stop - start for start, stop in bounds}
    return lengths.pop() if len(lengths) == 1 else None


def _run_by_run(factors: Factors, bounds: Sequence[tuple[int, int]]) -> Tensor:
    first = factors.total(*bounds[0])
    sums = first.new_empty(len(bounds), *first.shape)  # of all runs: a list of them would be as large again
    sums[0] = first
    for k, (start, stop) in enumerate(bounds[1:], 1):
        sums[k] = factors.total(start, stop)
    return sums


def slices(samples: int, sample_bytes: int) -> list[tuple[int, int]]:
    """Half-open runs of as many samples as may be multiplied out at a time."""
    step = max(1, _DENSE_BYTES // sample_bytes)
    return [(start, min(start + step, samples)) for start in range(0, samples, step)]


def folded_dense(factors: Factors, left: Fold, right: Fold, samples: int, sample_bytes: int) -> Dense:
    """Folded gradients by multiplying out a few samples at a time.

    Args:
        factors: What is folded.
        left: Fold of the rows.
        right: Fold of the columns.
        samples: Number of samples.
        sample_bytes: Size of one sample's gradients for all cotangents, multiplied out.

    Returns:
        The folded gradients, multiplied out.
    """
    runs = [Dense(factors.dense(*run)).folded(left, right) for run in slices(samples, sample_bytes)]
    return Dense(torch.cat([run.values for run in runs], 1))


def _sliced_gram(factors: Factors, groups: int, samples: int, sample_bytes: int) -> Tensor:
    """Gram matrices by multiplying out a few samples at a time."""
    return torch.cat([gram_of(factors.dense(*part), groups) for part in slices(samples, sample_bytes)])


def _sliced_gram_and_totals(
    factors: Factors, groups: int, bounds: Sequence[tuple[int, int]], samples: int, sample_bytes: int
) -> tuple[Tensor, Tensor]:
    """Gram matrices, and totals of adjacent runs, by multiplying out a few samples at a time, once for both."""
    run_of = np.zeros(samples, dtype=int)
    for run, (start, stop) in enumerate(bounds):
        run_of[start:stop] = run
    begin, end = bounds[0][0], bounds[-1][1]
    grams, totals = [], None
    for start, stop in slices(samples, sample_bytes):
        values = factors.dense(start, stop)
        grams.append(gram_of(values, groups))
        first, last = max(start, begin), min(stop, end)
        by_sample = values.transpose(0, 1)
        if totals is None:
            totals = by_sample.new_zeros(len(bounds), *by_sample.shape[1:])
        if first < last:
            runs = torch.as_tensor(run_of[first:last], device=values.device)
            totals.index_add_(0, runs, by_sample[first - start : last - start])
    assert totals is not None, "a batch has samples"
    return torch.cat(grams), totals
