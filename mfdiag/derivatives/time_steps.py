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
from torch.utils._pytree import tree_flatten, tree_unflatten

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
    """Sentences about times of which a part of the network has no derivative, while another part has one."""
    parts = {name: _lost_part(network, inputs, name) for name in names}
    return [_LOST[part].format(name=name, lacking=_LACKING[name]) for name, part in parts.items() if part is not None]


_LOST = {
    "rounded": "a part of the network rounds {name}, as an integer index does, and has no derivative by it although u "
    "changes with it; so {lacking}",
    "detached": "a part of the network takes {name} without a derivative, as detach() does; so du/d{name} lacks this "
    "part, as it does in a training with this network, although u changes with it.",
}


def _lost_part(network: nn.Module, inputs: Inputs, name: str) -> str | None:
    """What the network does with a time, apart from x, so that its derivative lacks a part: a key of `_LOST`, or None.

    A derivative passes no call whose result has none, such as an integer index, argmin or detach(). What it lacks is
    u at another time, less u there with the results of these calls from here. Interpolation between the rows of a
    table lacks nothing: at its nodes the difference begins at zero, and before them there is none.
    """
    try:
        if not _lost_calls(network, inputs, name):
            return None
        network, inputs = _in_double(network, inputs)  # a copy, which only few networks need
        lost = _lost_calls(network, inputs, name)
        with torch.enable_grad():  # so that it calls what it called when its calls were numbered
            return _kind_of_loss(network, inputs, name, lost)
    except NETWORK_ERRORS:
        return None  # the measurement says what the network refuses


def _lost_calls(network: nn.Module, inputs: Inputs, name: str) -> dict[int, frozenset[int]]:
    """The calls within the network that lose the derivative of functions of a time alone: number -> results."""
    with torch.enable_grad():
        of_time, of_x = _LostCalls(), _LostCalls()
        x, times = (a.detach().requires_grad_() for a in (inputs[0], _time(inputs, name)))
        timed = _with_time(inputs, name, times)
        with of_time:
            network(*timed)
        if not of_time.lost:
            return {}
        with of_x:
            network(x, *inputs[1:])
    rest = {call: places - of_x.lost.get(call, frozenset()) for call, places in of_time.lost.items()}
    return {call: places for call, places in rest.items() if places}


def _kind_of_loss(network: nn.Module, inputs: Inputs, name: str, lost: Mapping[int, frozenset[int]]) -> str | None:
    """How most samples lack a part of the derivative: the part jumps near them, or changes at once and for good."""
    recorded, times = _LostCalls(lost), _time(inputs, name).detach()
    timed = _with_time(inputs, name, times.clone().requires_grad_())
    with recorded:
        network(*timed)
    sign = torch.where(times <= 0.5, 1.0, -1.0)

    def lacking(size: Tensor) -> Tensor:
        """Norm of what the derivative lacks between each time and the one at a distance of `size` [n]."""
        moved = _with_time(inputs, name, (times + sign * size).requires_grad_())
        with _LostCalls(lost, recorded.results):
            frozen = network(*moved)
        return (network(*moved) - frozen).detach().flatten(1).norm(dim=1)

    by_size = torch.stack([lacking(torch.full_like(times, size)) for size in _SIZES])  # from small to large
    greatest, at_once = by_size.max(0).values, by_size[0] > 0
    whole = (network(*_with_time(inputs, name, times + sign / 2)) - network(*inputs)).detach().flatten(1).norm(dim=1)
    if bool((at_once & (greatest > _VISIBLE * whole)).double().mean() > 0.5):
        return "detached"
    first = (by_size > 0).double().argmax(0)  # the least size at which something is lacking
    changed = ~at_once & (by_size > 0).any(0)
    sizes = torch.tensor(_SIZES).to(times)
    low, high = sizes[(first - 1).clamp_min(0)], sizes[first]
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        beyond = lacking(middle) > 0
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    jumps = changed & (lacking(high) > _JUMP * greatest)
    return "rounded" if bool(jumps.double().mean() > 0.5) else None


_SIZES = tuple(2.0**-k for k in range(24, 2, -1))  # the largest one is that of the coarsest rounding which is noticed
_BISECTIONS = 24
_JUMP = 1e-3  # of the greatest change; a continuous change is 2^-24 of it just behind the place where it begins
_VISIBLE = 0.05  # of the change of u; a straight-through estimator lacks a fraction of its step alone

_ROUNDING = frozenset(
    {
        *(getattr(owner, name) for owner in (Tensor, torch) for name in ("round", "floor", "ceil", "trunc", "sign")),
        *(owner.floor_divide for owner in (Tensor, torch)),
        Tensor.__floordiv__,
    }
)
"""Functions whose result has a derivative, which is zero."""


class _LostCalls(TorchFunctionMode):
    """Numbers the calls of torch functions, and finds those that lose the derivative of an argument.

    Args:
        watched: By number, which tensors of a call's result to record in `results`.
        replayed: The same results, to pass on instead of those of this run.
    """

    def __init__(
        self,
        watched: Mapping[int, frozenset[int]] | None = None,
        replayed: Mapping[tuple[int, int], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.watched, self.replayed, self.count = watched or {}, replayed, 0
        self.lost: dict[int, frozenset[int]] = {}
        self.results: dict[tuple[int, int], Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        number, self.count = self.count, self.count + 1
        leaves, spec = tree_flatten(out)
        tensors = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        if any(isinstance(a, Tensor) and a.requires_grad for a in tree_flatten((args, kwargs))[0]):
            without = [place for place in tensors if func in _ROUNDING or not leaves[place].requires_grad]
            if without:
                self.lost[number] = frozenset(without)
        for place in self.watched.get(number, ()):
            if self.replayed is None:
                self.results[number, place] = leaves[place].detach().clone()
            else:
                leaves[place] = self.replayed[number, place].clone()
        return out if self.replayed is None or number not in self.watched else tree_unflatten(leaves, spec)


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
        f"{name} is 0 for {share} although u changes with {name}, so {_LACKING[name]}"
    )


_IGNORED = {
    "r": "it is no average over an interval; flow matching predicts so, with `output: {average: false}` in a card.",
    "t": "du/dt is 0, and the residual has du/dx v alone. Check how the network is called.",
}
_LACKING = {
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
