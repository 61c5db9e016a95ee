"""Times at which the output of a network jumps: where a time is rounded to few levels, or wraps around as in t % 0.25.

A difference over a step that holds a jump stays as large however small the step becomes, while that of a smooth
function shrinks with it. A straight-through estimator jumps too, but its derivative makes up for that over visible
differences.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mfdiag.errors import NETWORK_ERRORS
from mfdiag.fields.inputs import Inputs
from mfdiag.flow.conditions import map_condition

__all__ = ["has_sudden_change", "jump_places"]

_SAMPLES = 2  # a place that they share depends on the time alone
_SAME = 1e-6  # greatest distance of places that are the same
_GRID = 65  # times in [0, 1] between which jumps are sought
_CANDIDATES = 8  # steps of the grid that are examined, those of greatest change beside their neighbors
_SUDDEN = 2.0  # least ratio of a step's change to that of its neighbors where a jump is sought
_SLOWER = 0.9  # r over t where both are moved at once
_HALVINGS = (14, 30)  # of these steps; the change over the last one is compared with that over the first
_PERSISTS = 0.5  # least share of the change that is left
_LEAST = 1e-3  # of the greatest change on the grid
_AROUND = 5  # steps of the grid on either side of a place, over which the derivative is compared with differences
_LACKS = 0.5  # least share of a jump that the derivative lacks there


def has_sudden_change(network: nn.Module, inputs: Inputs) -> bool:
    """Whether u changes much more over one step of both times than over the steps beside it, as where it jumps.

    A smooth network may change so, too: `jump_places` decides.

    Args:
        network: The network, u(x, r, t, labels).
        inputs: A few of the samples that are measured; the first one is moved.

    Returns:
        Whether it does.
    """
    x, _, t, _ = inputs
    times = torch.linspace(0, 1, _GRID).to(t)
    with torch.no_grad():
        values = [network(*_at_times(inputs, _SLOWER * part, part)).flatten(1) for part in times.split(len(x))]
    return bool((_suddenness(torch.cat(values)[None]) > _SUDDEN).any())


def jump_places(network: nn.Module, inputs: Inputs, name: str) -> list[float]:
    """Places in (0, 1) at which u jumps with a time, whatever the point, and its derivative lacks the jump.

    Args:
        network: The network, u(x, r, t, labels), in float64 where it supports that.
        inputs: A few of the samples that are measured.
        name: "r" or "t".

    Returns:
        Some of the places, ascending.
    """
    x, r, t, condition = inputs
    samples = min(_SAMPLES, len(x))

    def u(times: Tensor) -> Tensor:
        rows = torch.arange(samples).repeat_interleave(times.shape[1]).to(x.device)
        repeated = map_condition(condition, lambda values: values[rows])
        flat = times.flatten().to(t)
        start, end = (flat, t[rows]) if name == "r" else (r[rows], flat)
        return network(x[rows], start, end, repeated).flatten(1).double().unflatten(0, times.shape)

    try:
        with torch.no_grad():
            place, step, jumps = _jumps(u, samples)
        jumps &= _lacking(u, place, step)
    except NETWORK_ERRORS:
        return []  # the measurement says what the network refuses
    own, *others = ([float(p) for p in row[jump]] for row, jump in zip(place, jumps, strict=True))
    return sorted(p for p in own if all(any(abs(p - q) < _SAME for q in other) for other in others))


def _jumps(u: Callable[[Tensor], Tensor], samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Places [n, k], the change of u there [n, k, d], and whether it is a jump [n, k]."""
    grid = torch.linspace(0, 1, _GRID, dtype=torch.float64).expand(samples, -1)
    values = u(grid)
    greatest = (values - values[:, :1]).norm(dim=2).max(1).values
    chosen = _suddenness(values).topk(_CANDIDATES, 1).indices
    low, high = grid.gather(1, chosen), grid.gather(1, chosen + 1)
    at_low, at_high = (_rows(values, index) for index in (chosen, chosen + 1))
    first = torch.zeros_like(low)
    for halving in range(_HALVINGS[1]):
        if halving == _HALVINGS[0]:
            first = (at_high - at_low).norm(dim=2)
        middle = (low + high) / 2
        between = u(middle)
        lower = (between - at_low).norm(dim=2) >= (at_high - between).norm(dim=2)
        low, high = torch.where(lower, low, middle), torch.where(lower, middle, high)
        at_low = torch.where(lower[..., None], at_low, between)
        at_high = torch.where(lower[..., None], between, at_high)
    left = (at_high - at_low).norm(dim=2)
    return high, at_high - at_low, (left > _PERSISTS * first) & (left > _LEAST * greatest[:, None])


def _at_times(inputs: Inputs, r: Tensor, t: Tensor) -> Inputs:
    """The first sample at times r and t [n]."""
    x, _, _, condition = inputs
    rows = torch.zeros(len(t), dtype=torch.int64, device=x.device)
    return x[rows], r, t, map_condition(condition, lambda values: values[rows])


def _suddenness(values: Tensor) -> Tensor:
    """The change of values [n, k, d] over each step [n, k - 1], over the greater one of the steps beside it."""
    changes = (values[:, 1:] - values[:, :-1]).norm(dim=2)
    beside = torch.nn.functional.pad(changes, (1, 1))
    beside = torch.maximum(beside[:, :-2], beside[:, 2:])
    return changes / torch.maximum(beside, _LEAST * changes.max(1, keepdim=True).values + 1e-300)


def _lacking(u: Callable[[Tensor], Tensor], place: Tensor, step: Tensor) -> Tensor:
    """Whether the derivative lacks the jumps at places [n, k] of sizes [n, k, d], over differences around them."""
    width = 1 / (_GRID - 1)
    offsets = width * torch.arange(-_AROUND, _AROUND + 1, dtype=torch.float64)
    times = (place[..., None] + offsets).clamp(0, 1)
    size = step.norm(dim=2)
    with torch.enable_grad():
        moved = times.detach().flatten(1).requires_grad_()
        along = (u(moved).unflatten(1, times.shape[1:]) * (step / size.clamp_min(1e-300)[..., None])[:, :, None]).sum(3)
        (slope,) = torch.autograd.grad(along.sum(), [moved], allow_unused=True)
    slopes = torch.zeros_like(times) if slope is None else slope.view_as(times)
    lacking = []
    for k in range(1, _AROUND + 1):
        window = slice(_AROUND - k, _AROUND + k + 1)
        change = along[..., _AROUND + k] - along[..., _AROUND - k]
        lacking.append(change - torch.trapezoid(slopes[..., window], times[..., window]))
    inside = (times[..., 0] < times[..., 1]) & (times[..., -2] < times[..., -1])
    return inside & (torch.stack(lacking).mean(0).detach() > _LACKS * size)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """values[n, index[n, k], :]."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
