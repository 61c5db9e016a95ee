"""Which update a checkpoint is a fixed point of: MeanFlow's, or that of a training with a mistake.

Where a training has settled, its own mean update vanishes, whatever the network could not learn. The mean updates of
other targets do not (docs/theory.md#updates). This needs no posterior over the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mfdiag.derivatives.differentiable_jvp import Point
from mfdiag.derivatives.finite_difference import jvp_by_difference, quotient_along
from mfdiag.diagnosis.field_probe import TARGETS
from mfdiag.diagnosis.measured import Measured
from mfdiag.flow.conditions import map_condition, move_condition
from mfdiag.flow.draw import Batch, Draws
from mfdiag.flow.weighting import Weighting
from mfdiag.gradients.intervals import jackknife
from mfdiag.gradients.moments import BlockMoments, Moments
from mfdiag.models.precision import measured_copy

__all__ = ["FACTOR", "THROUGH", "probe_updates"]

FACTOR, THROUGH = "factor_left_out", "gradient_through_target"
"""Updates beside those of `TARGETS`: a derivative without the factor t - r, and a target that is not detached."""

_NAMES = (*TARGETS, FACTOR, THROUGH)
_STEP = 2.0**-14  # of difference quotients
_BLOCKS, _AT_ONCE = 32, 32  # blocks of the jackknife; samples of a pass
_COORDINATES = 50_000  # parameters, evenly chosen, on which updates are compared: each of them has settled


def probe_updates(
    draws: Draws, networks: Mapping[str, nn.Module], samples: int, batch_size: int, weighting: Weighting
) -> Iterator[Measured]:
    """Compare mean updates, on the set of weights that has settled best.

    Args:
        draws: The distribution of the samples.
        networks: u(x, r, t, condition) by set of weights.
        samples: Number of samples.
        batch_size: Samples of a training step.
        weighting: Weight of each sample in the loss.

    Yields:
        Measurements of table `doctor`; none where the mean update of every training exceeds the noise of a step.
    """
    each = max(samples // _BLOCKS, 1)
    parts = [draws.batch(np.arange(each * k, each * (k + 1))) for k in range(_BLOCKS)]
    settled: tuple[float, str, Moments] | None = None
    for weights, module in networks.items():
        network = measured_copy(module, "cpu", torch.float64).requires_grad_()
        moments = _moments(torch.stack([_updates(network, part, weighting) for part in parts]))
        mean, noise = (np.diagonal(values[0, 0]) for values in (moments.M, moments.S))
        unrest = float(np.min(mean / (noise * each / batch_size)))
        if unrest < 1 and (settled is None or unrest < settled[0]):
            settled = unrest, weights, moments
    if settled is None:
        return
    _, weights, moments = settled
    plain, count = moments.M[:, 0, 0, 0], each * moments.count
    for k, name in enumerate(_NAMES[1:], start=1):
        cross, other = moments.M[:, 0, 0, k], moments.M[:, 0, k, k]
        keys = {"weights": weights, "target": name}
        coefficient = (plain - cross) / (plain - 2 * cross + other)
        yield Measured("update_coefficient", jackknife(coefficient, count), keys=keys)
        yield Measured("update_preference", jackknife((plain - other) / (plain + other), count), keys=keys)


def _updates(network: nn.Module, batch: Batch, weighting: Weighting) -> Tensor:
    """Mean updates [K, P] of a block of samples, MeanFlow's first."""
    chunks = [slice(k, k + _AT_ONCE) for k in range(0, len(batch.t), _AT_ONCE)]
    sums = [_sum_of_updates(network, batch, samples, weighting) for samples in chunks]
    return torch.stack(sums).sum(0) / len(batch.t)


def _sum_of_updates(network: nn.Module, batch: Batch, samples: slice, weighting: Weighting) -> Tensor:
    x, r, t, v = (value[samples] for value in (batch.x_t, batch.r, batch.t, batch.velocity))
    condition = move_condition(map_condition(batch.condition, lambda values: values[samples]), x)
    column = (-1, *[1] * (x.ndim - 1))
    gap = (t - r).view(column)

    def u_at(x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        output: Tensor = network(x, r, t, condition)
        return output

    point, along = (x, r, t), (v, torch.zeros_like(r), torch.ones_like(t))
    u, derivative = jvp_by_difference(u_at, point, along, _STEP)
    with torch.no_grad():
        derivatives = _derivatives(u_at, point, v)
        residuals = [u - v + gap * _sum(factors, derivatives) for factors in TARGETS.values()]
        residuals.append(u - v + _sum(TARGETS["meanflow"], derivatives))
        cotangents = [2 * weighting(residual) for residual in residuals]
        if batch.weight is not None:
            cotangents = [batch.weight[samples].view(column) * cotangent for cotangent in cotangents]
    parameters = [p for p in network.parameters() if p.requires_grad]
    updates = [_pulled_back(u, cotangent, parameters) for cotangent in cotangents]
    through = _pulled_back(derivative, gap * cotangents[0], parameters)
    return torch.stack([*updates, updates[0] + through])


def _derivatives(u_at: Callable[..., Tensor], point: Point, v: Tensor) -> list[Tensor]:
    """du/dx v, du/dt and du/dr."""
    x, r, t = (torch.zeros_like(value) for value in point)
    tangents = ((v, r, t), (x, r, t + 1), (x, r + 1, t))
    return [quotient_along(u_at, point, tangent, _STEP) for tangent in tangents]


def _sum(factors: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([factor * part for factor, part in zip(factors, parts, strict=True)]).sum(0)


def _pulled_back(output: Tensor, cotangent: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The gradient [P] of <output, cotangent> by evenly chosen parameters."""
    gradients = torch.autograd.grad(output, parameters, cotangent, retain_graph=True, allow_unused=True)
    every = max(sum(p.numel() for p in parameters) // _COORDINATES, 1)
    used = (gradient.flatten()[::every] for gradient in gradients if gradient is not None)
    return torch.cat([*used, output.new_zeros(0)])


def _moments(updates: Tensor) -> Moments:
    """Moments of updates [B, K, P], each block a sample."""
    blocks, size = updates.shape[:2]
    flat = updates.flatten(0, 1)
    gram = (flat @ flat.T).numpy().reshape(blocks, size, blocks, size).swapaxes(1, 2)[:, :, None]
    own = gram[np.arange(blocks), np.arange(blocks)]
    once = np.ones(blocks)
    return BlockMoments(once, own, own, gram.sum(1), gram.sum((0, 1)), gram, once).replicates()
