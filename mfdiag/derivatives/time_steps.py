"""Whether times reach the output of a network smoothly, or rounded, clamped, in low precision or not at all.

A derivative with respect to a time says little where the network is constant over a step of it. Such a step shows in
the values alone: the output for a time and for a slightly other one is equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mfdiag.derivatives.lost_parts import LACKING, in_double, lost_notes, time_of, with_time
from mfdiag.errors import NETWORK_ERRORS
from mfdiag.fields.inputs import Inputs

__all__ = ["time_notes"]

_SMALL = 2.0**-14  # a shift of a time that changes every smooth dependence, also that on times multiplied by 1000
_SHIFTS = tuple(2.0**-k for k in range(16, 1, -1))
_GRID = 33  # times in [0, 1] at which a network that is constant somewhere is evaluated
_FORMATS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_SCALES = (1.0, 1000.0)  # of times within networks


def time_notes(module: nn.Module, inputs: Inputs, names: Sequence[str] = ("r", "t")) -> list[str]:
    """Say which time does not reach the output smoothly, how, and what follows.

    Args:
        module: The network, u(x, r, t, labels).
        inputs: A few of the samples that are measured.
        names: The times that the network takes.

    Returns:
        A sentence for each time concerned. None where the output does not depend on x either.
    """
    with torch.no_grad():
        base = module(*inputs)
        constant = {name: _unchanged(base, module(*_shifted(inputs, name, _SMALL))) for name in names}
        if not any(flat.any() for flat in constant.values()):
            return lost_notes(module, inputs, names)
        network, inputs = in_double(module, inputs)  # small changes must not be lost to rounding
        base = network(*inputs)
        if bool(_unchanged(base, network(*_moved(inputs))).all()):
            return []  # as a network whose last layer is zero
        notes = [_note(network, inputs, base, name) for name, flat in constant.items() if flat.any()]
        smooth = [name for name, flat in constant.items() if not flat.any()]
        return [note for note in notes if note is not None] + lost_notes(network, inputs, smooth)


def _note(network: nn.Module, inputs: Inputs, base: Tensor, name: str) -> str | None:
    def of(times: Tensor) -> Tensor:
        return network(*with_time(inputs, name, times))

    times = time_of(inputs, name)
    flat = _unchanged(base, network(*_shifted(inputs, name, _SMALL)))
    if not flat.any():
        return None
    grid = torch.linspace(0, 1, _GRID).to(times)
    values = [of(time.expand_as(times)) for time in grid]
    changes = [not bool(_unchanged(a, b).all()) for a, b in pairwise(values)]
    if not any(changes):
        return f"u does not depend on {name}: {_IGNORED[name]}"
    if (kind := _cast_to(of, times, base)) is not None:
        return (
            f"the network casts {name} to {kind} within, so u is constant over steps of it; derivatives are those at "
            "the rounded time, and differences over less than a step mean nothing."
        )
    share = f"{int(flat.sum())} of {len(flat)} samples"
    first, last = changes.index(True), len(changes) - 1 - changes[::-1].index(True)
    if all(changes[first : last + 1]) and _smooth_inside(of, times, grid[first + 1], grid[last]):
        low, high = float(grid[first]), float(grid[last + 1])
        return (
            f"u changes with {name} only between about {low:.2g} and {high:.2g}, as where it is clamped; for {share} "
            f"du/d{name} is 0."
        )
    step = _step(network, inputs, name, base)
    if _has_derivative(network, inputs, name):
        return (
            f"the network rounds what it computes from {name}, in steps of about {step:.1g} of it, so u is constant "
            "over such steps; derivatives pass through the rounding, and differences over less than a step mean "
            "nothing."
        )
    return (
        f"the network rounds {name} within, in steps of about {step:.1g}, as an integer index does: its derivative by "
        f"{name} is 0 for {share} although u changes with {name}, so {LACKING[name]}"
    )


_IGNORED = {
    "r": "it is no average over an interval; flow matching predicts so, with `output: {average: false}` in a card.",
    "t": "du/dt is 0, and the residual has du/dx v alone. Check how the network is called.",
}


def _has_derivative(network: nn.Module, inputs: Inputs, name: str) -> bool:
    """Whether u has a derivative by a time although it is rounded, as casts and straight-through estimators give it."""
    times = time_of(inputs, name).detach().requires_grad_()
    try:
        with torch.enable_grad():
            total = network(*with_time(inputs, name, times)).square().sum()
            (slope,) = torch.autograd.grad(total, [times], allow_unused=True)
    except NETWORK_ERRORS:
        return False
    return slope is not None and bool(slope.any())


def _cast_to(of: Callable[[Tensor], Tensor], times: Tensor, base: Tensor) -> str | None:
    """The format to which rounding changes nothing, while its next number changes u; None without one."""
    for kind, dtype in _FORMATS.items():
        for scale in _SCALES:
            rounded = (scale * times).to(dtype)
            following = (rounded.to(times) * (1 + torch.finfo(dtype).eps)).to(dtype)
            same, different = (of(value.to(times) / scale) for value in (rounded, following))
            if bool(_unchanged(base, same).all()) and not bool(_unchanged(base, different).any()):
                return kind
    return None


def _smooth_inside(of: Callable[[Tensor], Tensor], times: Tensor, low: Tensor, high: Tensor) -> bool:
    """Whether small shifts of times between `low` and `high` change u."""
    if not low < high:
        return False
    places = torch.linspace(0.1, 0.9, len(times)).to(times)
    inside = low + (high - low) * places
    return not bool(_unchanged(of(inside), of(inside + _SMALL)).any())


def _step(network: nn.Module, inputs: Inputs, name: str, base: Tensor) -> float:
    """The step in which u changes: twice the median shift that a sample needs."""
    needed = torch.ones_like(time_of(inputs, name))
    for shift in reversed(_SHIFTS):
        changed = ~_unchanged(base, network(*_shifted(inputs, name, shift)))
        needed = torch.where(changed, torch.full_like(needed, shift), needed)
    return float(needed.median())


def _shifted(inputs: Inputs, name: str, shift: float) -> Inputs:
    """The inputs with one time shifted, within [0, 1]."""
    times = time_of(inputs, name)
    return with_time(inputs, name, torch.where(times + shift <= 1, times + shift, times - shift))


def _moved(inputs: Inputs) -> Inputs:
    x, r, t, condition = inputs
    return x + 1, r, t, condition


def _unchanged(a: Tensor, b: Tensor) -> Tensor:
    """Which samples have equal values."""
    return (a == b).flatten(1).all(1)
