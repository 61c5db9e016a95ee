"""Sliced Wasserstein-1 distance: the mean over directions of W1 between projections, exact by sorting."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from mfdiag.quality.metrics._base import Metric

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from mfdiag.gradients.intervals import Estimate
    from mfdiag.quality.metrics._base import Reference

__all__ = ["ANGLES", "METRIC", "directions"]

ANGLES = 64
"""Equally spaced directions in two dimensions; the error of this quadrature is below 1e-3 of the distance."""

_DIRECTIONS = 512  # random directions in more dimensions
_FRAME = 64  # orthogonal directions in a frame, at most
_DIRECTIONS_AT_ONCE = 16  # bounds the memory


def directions(dim: int, seed: int) -> Tensor:
    """Unit vectors [F, k, d] in float64, in F frames of k.

    One for d = 1, ANGLES on half a circle for d = 2. In more dimensions about 512 random ones, in independent
    frames of orthogonal vectors: their mean is less noisy than that of independent vectors (Rowland et al. 2019,
    arXiv 1903.03784).
    """
    import numpy as np
    import torch

    from mfdiag.flow.seeds import normals

    if dim == 1:
        return torch.ones(1, 1, 1, dtype=torch.float64)
    if dim == 2:
        angle = torch.pi * (torch.arange(ANGLES, dtype=torch.float64) + 0.5) / ANGLES
        return torch.stack([angle.cos(), angle.sin()], dim=1)[None]
    size = min(dim, _FRAME)
    frames = normals(seed, "quality/directions", np.arange(_DIRECTIONS // size), dim * size)
    return torch.linalg.qr(torch.as_tensor(frames).view(-1, dim, size)).Q.mT


def _influence(own: Tensor, other: Tensor, block: Tensor, blocks: int) -> Tensor:
    """Summed influence [B] on W1 of the samples `own` [L, n] in each block.

    `own` is sorted, and `block` int64 [L, n] says which block each entry is from. `other` [L, n - 1] are the quantiles
    of the other distribution at 1/n ... (n-1)/n.
    """
    import torch

    # docs/theory.md#quality-pooled: W1 = int |F - G|, so mass at x has the influence h(x) = int_x^inf sign(F - G) up to
    # a constant. Between x_i and x_(i+1), where F = i/n, the sign changes from + to - at G^(-1)(i/n), or at the end
    # that is next to it
    left, right = own[:, :-1].double(), own[:, 1:].double()
    change = other.double().clamp(left, right)
    step = (change - left) - (right - change)
    influence = torch.zeros(own.shape, dtype=torch.float64, device=own.device)
    influence[:, :-1] = step.flip(1).cumsum(1).flip(1)
    influence -= influence.mean(1, keepdim=True)
    return influence.new_zeros(blocks).index_add_(0, block.flatten(), influence.flatten())


class _Cuts(NamedTuple):
    """How W1 of `count` against `size` sorted samples is summed.

    W1 = int_0^1 |F^(-1)(q) - G^(-1)(q)| dq, where both are constant between the cuts i/count and j/size: `of_model` and
    `of_data` say which samples they are, and `width` how long.
    """

    of_model: Tensor
    of_data: Tensor
    width: Tensor

    def distances(self, model: Tensor, data: Tensor) -> Tensor:
        """W1 [L] of sorted samples [L, count] and [L, size]."""
        return (model[:, self.of_model] - data[:, self.of_data]).abs().double() @ self.width


def _cuts(count: int, size: int, device: torch.device) -> _Cuts:
    import torch

    # all cuts times count size
    cuts = torch.cat([torch.arange(count + 1) * size, torch.arange(size + 1) * count]).unique().to(device)
    return _Cuts(cuts[:-1] // size, cuts[:-1] // count, cuts.diff().double() / (count * size))


def _halves(values: Tensor, block: Tensor | None) -> list[Tensor]:
    """Sorted samples [L, n] of every other block, and of the rest; all of them twice where there are no blocks."""
    if block is None:
        return [values, values]
    even = block % 2 == 0
    return [values[part].view(len(values), -1) for part in (even, ~even)]


def prepare(reference: Reference) -> Callable[[Tensor], Estimate]:
    import torch

    from mfdiag.quality.intervals import estimate_from_influence

    frames = directions(reference.points.shape[-1], reference.seed).to(reference.points)
    groups = frames.flatten(0, 1).split(_DIRECTIONS_AT_ONCE)
    replicates, per_replicate = reference.points.shape[:2]
    size, count, device = replicates * per_replicate, reference.samples, frames.device
    data = []
    for group in groups:
        values, order = (group @ reference.points.flatten(0, 1).T).sort(1)
        data.append((values, None if reference.whole else (order // per_replicate).to(torch.uint8)))

    def quantiles(own: int, other: int) -> Tensor:
        """Indices, among `other` sorted samples, of the quantiles i/own, i = 1 ... own - 1."""
        return (torch.arange(1, own, device=device) * other + own - 1) // own - 1

    at_model, at_data = quantiles(count, size), quantiles(size, count)
    cuts = _cuts(count, size, device)
    cuts_of = cache(lambda own, other: _cuts(own, other, device))  # of halves: all models have as many samples

    def distance(samples: Tensor) -> Estimate:
        blocks, per_block = samples.shape[:2]
        per_direction, of_halves = [], []
        model_side = torch.zeros(blocks, dtype=torch.float64, device=device)
        data_side = torch.zeros(replicates, dtype=torch.float64, device=device)
        for group, (target, block) in zip(groups, data, strict=True):
            values, order = (group @ samples.flatten(0, 1).T).sort(1)
            per_direction.append(cuts.distances(values, target))
            for own, other in zip(_halves(values, order // per_block), _halves(target, block), strict=True):
                of_halves.append(cuts_of(own.shape[1], other.shape[1]).distances(own, other).sum())
            model_side += _influence(values, target[:, at_model], order // per_block, blocks)
            if block is not None:
                data_side += _influence(target, values[:, at_data], block.long(), replicates)
        distances = torch.cat(per_direction)
        parts = [model_side / (per_block * len(distances))]
        if not reference.whole:
            parts.append(data_side / (per_replicate * len(distances)))
        if len(frames) > 1:
            parts.append(distances.view(len(frames), -1).mean(1))
        halved = float(torch.stack(of_halves).sum()) / (2 * len(distances))
        return estimate_from_influence(float(distances.mean()), halved, parts, count)

    return distance


METRIC = Metric(
    name="sliced_wasserstein",
    title="sliced Wasserstein-1 distance; 64 angles in two dimensions, 512 random directions in more",
    paper="Bonneel et al. 2015, J. Math. Imaging Vis. 51",
    formula="E_w W1(<w, X>, <w, Y>), w uniform on the unit sphere",
    best=0.0,
    pooled=prepare,
)
