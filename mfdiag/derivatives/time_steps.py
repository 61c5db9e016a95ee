"""Whether times reach the output of a network smoothly, or rounded, clamped, in low precision or not at all.

A derivative with respect to a time says little where the network is constant over a step of it. Such a step shows in
the values alone: the output for a time and for a slightly other one is equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mfdiag.errors import NETWORK_ERRORS
from mfdiag.fields.inputs import Inputs
from mfdiag.models.precision import measured_copy

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
            return _notes_of_parts(module, inputs, names)
        network, inputs = _in_double(module, inputs)  # small changes must not be lost to rounding
        base = network(*inputs)
        if bool(_unchanged(base, network(*_moved(inputs))).all()):
            return []  # as a network whose last layer is zero
        notes = [_note(network, inputs, base, name) for name, flat in constant.items() if flat.any()]
        smooth = [name for name, flat in constant.items() if not flat.any()]
        return [note for note in notes if note is not None] + _notes_of_parts(network, inputs, smooth)


def _notes_of_parts(network: nn.Module, inputs: Inputs, names: Sequence[str]) -> list[str]:
    """Sentences about times that a part of the network rounds while another part takes them as they are."""
    return [
        f"a part of the network rounds {name}, as an integer index does, and has no derivative by it although u "
        f"changes with it; so {_ROUNDED[name]}"
        for name in names
        if _rounds(network, inputs, name)
    ]


def _rounds(network: nn.Module, inputs: Inputs, name: str) -> bool:
    """Whether a function of one time alone, and not of x, is rounded within the network, and the result matters."""
    x, _, _, _ = inputs
    try:
        with torch.enable_grad():
            of_time, of_x = _RoundingCalls(), _RoundingCalls()
            with of_time:
                network(*_with_time(inputs, name, _time(inputs, name).detach().requires_grad_()))
            if not of_time.differentiable:
                return False
            with of_x:
                network(x.detach().requires_grad_(), *inputs[1:])
        with torch.no_grad():
            base = network(*inputs)
            with _RoundingCalls(frozenset(of_time.differentiable - of_x.differentiable)):
                return not torch.equal(base, network(*inputs))
    except NETWORK_ERRORS:
        return False  # the measurement says what the network refuses


_ROUNDING = frozenset(
    {
        *(getattr(Tensor, name) for name in ("long", "int", "short", "round", "floor", "ceil", "trunc", "to", "type")),
        *(getattr(torch, name) for name in ("round", "floor", "ceil", "trunc", "bucketize", "searchsorted")),
        *(owner.floor_divide for owner in (Tensor, torch)),
        Tensor.__floordiv__,
    }
)


class _RoundingCalls(TorchFunctionMode):
    """Numbers the calls that round, and records in `differentiable` those of tensors with a gradient.

    Args:
        swapped: Numbers of the calls whose results are passed on to the next sample.
    """

    def __init__(self, swapped: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.swapped, self.count, self.differentiable = swapped, 0, set[int]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func not in _ROUNDING or not isinstance(out, Tensor):
            return out
        casts = func in (Tensor.to, Tensor.type)
        if casts and out.is_floating_point():
            return out
        self.count += 1
        if any(isinstance(a, Tensor) and a.requires_grad for a in args):
            self.differentiable.add(self.count)
        return out.roll(1, 0) if self.count in self.swapped and out.ndim else out


def _in_double(module: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """A copy of the network in float64, and its inputs; both as they are where it supports no other precision."""
    x, r, t, condition = inputs
    double = (x.double(), r.double(), t.double(), condition)
    try:
        network = measured_copy(module, x.device, torch.float64)
        network(*double)
    except NETWORK_ERRORS:
        return module, inputs
    return network, double


def _note(network: nn.Module, inputs: Inputs, base: Tensor, name: str) -> str | None:
    def of(times: Tensor) -> Tensor:
        return network(*_with_time(inputs, name, times))

    times = _time(inputs, name)
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
        f"{name} is 0 for {share} although u changes with {name}, so {_ROUNDED[name]}"
    )


_IGNORED = {
    "r": "it is no average over an interval; flow matching predicts so, with `output: {average: false}` in a card.",
    "t": "du/dt is 0, and the residual has du/dx v alone. Check how the network is called.",
}
_ROUNDED = {
    "r": "losses with du/dr lack it.",
    "t": "the residual lacks du/dt. Numbers are those of such a training; pass --derivative difference:h with a step h "
    "of several of these steps to include it.",
}


def _has_derivative(network: nn.Module, inputs: Inputs, name: str) -> bool:
    """Whether u has a derivative by a time although it is rounded, as casts and straight-through estimators give it."""
    times = _time(inputs, name).detach().requires_grad_()
    try:
        with torch.enable_grad():
            total = network(*_with_time(inputs, name, times)).square().sum()
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
    needed = torch.ones_like(_time(inputs, name))
    for shift in reversed(_SHIFTS):
        changed = ~_unchanged(base, network(*_shifted(inputs, name, shift)))
        needed = torch.where(changed, torch.full_like(needed, shift), needed)
    return float(needed.median())


def _time(inputs: Inputs, name: str) -> Tensor:
    _, r, t, _ = inputs
    return r if name == "r" else t


def _with_time(inputs: Inputs, name: str, times: Tensor) -> Inputs:
    x, r, t, condition = inputs
    return (x, times, t, condition) if name == "r" else (x, r, times, condition)


def _shifted(inputs: Inputs, name: str, shift: float) -> Inputs:
    """The inputs with one time shifted, within [0, 1]."""
    times = _time(inputs, name)
    return _with_time(inputs, name, torch.where(times + shift <= 1, times + shift, times - shift))


def _moved(inputs: Inputs) -> Inputs:
    x, r, t, condition = inputs
    return x + 1, r, t, condition


def _unchanged(a: Tensor, b: Tensor) -> Tensor:
    """Which samples have equal values."""
    return (a == b).flatten(1).all(1)
