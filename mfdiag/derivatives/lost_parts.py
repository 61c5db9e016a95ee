"""Parts of a network that take a time without a derivative, beside parts that have one.

A derivative passes no call whose result has none: an integer index, argmin, detach(), a number that Python reads
(`item`, `tolist`). What it lacks is u at another time, less u there with the results of these calls from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from mfdiag.derivatives.jumps import has_sudden_change, jump_places
from mfdiag.errors import NETWORK_ERRORS
from mfdiag.fields.inputs import Inputs
from mfdiag.models.precision import measured_copy

__all__ = ["LACKING", "in_double", "lost_notes", "time_of", "with_time"]

_SHARES = tuple(2.0**-k for k in range(24, -1, -1))  # of the way to the farther end
_BISECTIONS = 24
_JUMP = 1e-3  # of the greatest change; a continuous change is 2^-24 of it just behind the place where it begins
_VISIBLE = 0.05  # of the change of u; a straight-through estimator lacks a fraction of its step alone
_LACKS = 0.1  # of what would be missing; a function with a derivative of its own lacks nothing

LACKING = {
    "r": "losses with du/dr lack it.",
    "t": "the residual lacks du/dt. Numbers are those of such a training; pass --derivative difference:h with a step h "
    "of several of these steps to include it.",
}
"""By time, what follows where u has no derivative by it."""

_SHOWN = 2  # places of jumps that a note names

_BETWEEN = {
    "r": "losses with du/dr lack {jumps}.",
    "t": "the residual lacks {jumps}, as it does in a training with this network.",
}
"""By time, what follows where u jumps."""

_LOST = {
    "rounded": "a part of the network rounds {name}, as an integer index does, and has no derivative by it although u "
    "changes with it; so {lacking}",
    "detached": "a part of the network takes {name} without a derivative, as detach() does; so du/d{name} lacks this "
    "part, as it does in a training with this network, although u changes with it.",
}


def lost_notes(network: nn.Module, inputs: Inputs, names: Sequence[str]) -> list[str]:
    """Sentences about times of which a part of the network has no derivative, while another part has one.

    Interpolation between the rows of a table lacks nothing: at its nodes the difference begins at zero, and before them
    there is none. One jump is a branch, several are a rounding. A jump beside equal changes within 1/64 is not found.

    Args:
        network: The network, u(x, r, t, labels).
        inputs: A few of the samples that are measured.
        names: The times that are examined.

    Returns:
        A sentence for each time concerned.
    """
    parts = {name: _lost_part(network, inputs, name) for name in names}
    try:
        sudden = None in parts.values() and has_sudden_change(network, inputs)
    except NETWORK_ERRORS:
        sudden = False
    notes = (
        _jumps_note(network, inputs, name, sudden)
        if part is None
        else _LOST[part].format(name=name, lacking=LACKING[name])
        for name, part in parts.items()
    )
    return [note for note in notes if note is not None]


def _jumps_note(network: nn.Module, inputs: Inputs, name: str, sudden: bool) -> str | None:
    """What is said where u jumps with a time; None where it does not."""
    try:
        if not sudden and not _may_jump(network, inputs, name):
            return None
    except NETWORK_ERRORS:
        return None
    places = jump_places(*in_double(network, inputs), name)
    if not places:
        return None
    where = ", ".join(f"{place:.3g}" for place in places[:_SHOWN])
    if len(places) == 1:
        return (
            f"u jumps with {name} at {where}, as where a branch begins; derivatives are those on either side, so "
            f"{_BETWEEN[name].format(jumps='the jump')}"
        )
    more = " and in other places" if len(places) > _SHOWN else ""
    return (
        f"u jumps with {name}, as at {where}{more}, as where a time is rounded or wraps around; derivatives are those "
        f"between the jumps, so {_BETWEEN[name].format(jumps='the jumps')}"
    )


def _lost_part(network: nn.Module, inputs: Inputs, name: str) -> str | None:
    """What the network does with a time, apart from x, that its derivative lacks: a key of `_LOST`, or None."""
    try:
        if not _lost_calls(network, inputs, name):
            return None
        network, inputs = in_double(network, inputs)  # a copy, which only few networks need
        part = _Part(network, inputs, name, _lost_calls(network, inputs, name))
        with torch.enable_grad():  # so that it calls what it called when its calls were numbered
            times = time_of(inputs, name).detach()
            end = (times <= 0.5).to(times)  # the farther one of [0, 1]
            way = _Way(part, times, end)
            if way.starts_detached():
                return "detached"
            place, jumps = way.first_jump()
            if _most(jumps) and _most(jumps & _Way(part, place, end).first_jump()[1]):
                return "rounded"
        return None
    except NETWORK_ERRORS:
        return None  # the measurement says what the network refuses


def _may_jump(network: nn.Module, inputs: Inputs, name: str) -> bool:
    """Whether the network calls a function that rounds or wraps around."""
    with torch.enable_grad():
        calls = _LostCalls()
        with calls:
            network(*with_time(inputs, name, time_of(inputs, name).detach().requires_grad_()))
    return bool(calls.lost) or calls.wraps


def _lost_calls(network: nn.Module, inputs: Inputs, name: str) -> dict[int, frozenset[int]]:
    """The calls within the network that lose the derivative of functions of a time alone: number -> results."""
    with torch.enable_grad():
        of_time, of_x = _LostCalls(), _LostCalls()
        x, times = (a.detach().requires_grad_() for a in (inputs[0], time_of(inputs, name)))
        timed = with_time(inputs, name, times)
        with of_time:
            network(*timed)
        if not of_time.lost:
            return {}
        with of_x:
            network(x, *inputs[1:])
    rest = {call: places - of_x.lost.get(call, frozenset()) for call, places in of_time.lost.items()}
    return {call: places for call, places in rest.items() if places}


@dataclass
class _Part:
    """What u owes to calls that lose the derivative by a time.

    Attributes:
        network: The network.
        inputs: Some samples.
        name: The time.
        calls: By number of a call, its results without a derivative.
    """

    network: nn.Module
    inputs: Inputs
    name: str
    calls: Mapping[int, frozenset[int]]

    def u(self, times: Tensor, calls: _LostCalls | None = None) -> Tensor:
        """u at other times, flat [n, d]."""
        moved = with_time(self.inputs, self.name, times.detach().requires_grad_())
        with nullcontext() if calls is None else calls:  # which number the calls of the network alone
            output = self.network(*moved)
        return output.flatten(1).detach()

    def results(self, times: Tensor) -> Mapping[tuple[int, int], Any]:
        """The results of the calls at times [n]."""
        recorded = _LostCalls(self.calls)
        self.u(times, recorded)
        return recorded.results

    def lacking(self, results: Mapping[tuple[int, int], Any], times: Tensor) -> Tensor:
        """u at times [n], less u there with other results of the calls, [n, d]; zero where rounding explains it."""
        u = self.u(times)
        lacks = (u - self.u(times, _LostCalls(self.calls, results))).nan_to_num(0, 0, 0)
        noise = torch.finfo(u.dtype).eps ** 0.75 * u.norm(dim=1, keepdim=True)
        return torch.where(lacks.norm(dim=1, keepdim=True) > noise, lacks, 0.0)


class _Way:
    """What u lacks on the way from its times to others.

    Args:
        part: What loses the derivative.
        times: Where its results are from [n].
        end: The end of the way [n].
    """

    def __init__(self, part: _Part, times: Tensor, end: Tensor) -> None:
        self.part, self.times, self.way, self.results = part, times, end - times, part.results(times)
        self.by_share = torch.stack([self.lacking(torch.full_like(times, share)) for share in _SHARES])  # from small on

    def lacking(self, share: Tensor) -> Tensor:
        """Norm of what u lacks behind some share of the way [n]."""
        return self.part.lacking(self.results, self.times + share * self.way).norm(dim=1)

    def starts_detached(self) -> bool:
        """Whether the derivative of most samples lacks something at once, and much of the change of u."""
        part, times = self.part, self.times
        whole = (part.u(times + self.way.sign() / 2) - part.u(times)).norm(dim=1)
        if not _most((self.by_share[0] > 0) & (self.by_share.max(0).values > _VISIBLE * whole)):
            return False
        # a function with a derivative of its own computes without one inside; u along what would be missing decides
        step = self.way.sign() * torch.finfo(times.dtype).eps ** (1 / 3)
        missing = part.lacking(self.results, times + step)
        size = missing.norm(dim=1)
        direction = missing / size.clamp_min(torch.finfo(times.dtype).tiny).unsqueeze(1)
        change = ((part.u(times + step) - part.u(times)) * direction).sum(1)
        middle = (times + step / 2).requires_grad_()
        along = (part.network(*with_time(part.inputs, part.name, middle)).flatten(1) * direction).sum()
        slope = torch.autograd.grad(along, [middle], allow_unused=True)[0] if along.requires_grad else None
        derivative = torch.zeros_like(times) if slope is None else slope
        return _most((change - step * derivative).abs() > _LACKS * size)

    def first_jump(self) -> tuple[Tensor, Tensor]:
        """Times just behind the first change of the part, and whether it jumps there [n]."""
        first = (self.by_share > 0).double().argmax(0)
        changed = ~(self.by_share[0] > 0) & (self.by_share > 0).any(0)
        shares = torch.tensor(_SHARES).to(self.times)
        low, high = shares[(first - 1).clamp_min(0)], shares[first]
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            beyond = self.lacking(middle) > 0
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        jumps = changed & (self.lacking(high) > _JUMP * self.by_share.max(0).values)
        return self.times + high * self.way, jumps


def _most(samples: Tensor) -> bool:
    return bool(samples.double().mean() > 0.5)


_ROUNDING = ("Round", "Floor", "Ceil", "Trunc", "Sign", "Sgn", "Bernoulli", "DivBackward2", "DivBackward3")
"""How torch calls the derivatives of functions whose derivative is zero; of divisions, those with a rounding mode."""

_WRAPPING = ("Remainder", "Fmod", "Frac", "Atan2", "Angle", "Tan")
"""The same of functions with a derivative that jump."""

_WITHOUT = "torch::autograd::NotImplemented"  # the same of functions that have none, such as floor_divide

_READ = frozenset(
    getattr(Tensor, name)
    for name in (
        *("item", "tolist", "numpy", "equal", "__array__", "__bool__", "__int__", "__index__", "__float__"),
        *("__complex__", "__format__", "__contains__"),
    )
) | {torch.equal, torch.allclose, torch.is_nonzero}
"""Functions that read values of tensors into Python."""


class _LostCalls(TorchFunctionMode):
    """Numbers the calls of torch functions, and finds those that lose the derivative of an argument.

    Args:
        watched: By number, which parts of a call's result to record in `results`.
        replayed: The same results, to pass on instead of those of this run.
    """

    def __init__(
        self,
        watched: Mapping[int, frozenset[int]] | None = None,
        replayed: Mapping[tuple[int, int], Any] | None = None,
    ) -> None:
        super().__init__()
        self.watched, self.replayed, self.count = watched or {}, replayed, 0
        self.lost: dict[int, frozenset[int]] = {}
        self.wraps = False
        self.results: dict[tuple[int, int], Any] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        number, self.count = self.count, self.count + 1
        leaves, spec = tree_flatten(out)
        if any(isinstance(a, Tensor) and a.requires_grad for a in tree_flatten((args, kwargs))[0]):
            without = [place for place, leaf in enumerate(leaves) if func in _READ or _has_no_derivative(leaf)]
            self.wraps = self.wraps or any(_wraps_around(leaf) for leaf in leaves)
            if without:
                self.lost[number] = frozenset(without)
        if number not in self.watched:
            return out
        for place in self.watched[number]:
            if self.replayed is None:
                self.results[number, place] = _copied(leaves[place])
            elif isinstance(leaves[place], Tensor) and any(leaves[place] is a for a in args):  # changed in place
                leaves[place].data.copy_(self.replayed[number, place])
            else:
                leaves[place] = _copied(self.replayed[number, place])
        return out if self.replayed is None else tree_unflatten(leaves, spec)


def _has_no_derivative(result: Any) -> bool:
    """Whether a result is a tensor that has no derivative, or one that is zero."""
    if not isinstance(result, Tensor):
        return False
    if result.grad_fn is None:
        return not result.requires_grad
    name = result.grad_fn.name()
    return name.startswith(_ROUNDING) or name == _WITHOUT


def _wraps_around(result: Any) -> bool:
    """Whether a result comes from a function that jumps although it has a derivative."""
    return isinstance(result, Tensor) and result.grad_fn is not None and result.grad_fn.name().startswith(_WRAPPING)


def _copied(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.detach().clone()
    return result.copy() if isinstance(result, np.ndarray) else result


def in_double(module: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """A copy of a network in float64, and its inputs; both as they are where it supports no other precision.

    Args:
        module: The network.
        inputs: Its inputs.

    Returns:
        Network and inputs.
    """
    x, r, t, condition = inputs
    double = (x.double(), r.double(), t.double(), condition)
    try:
        network = measured_copy(module, x.device, torch.float64)
        network(*double)
    except NETWORK_ERRORS:
        return module, inputs
    return network, double


def time_of(inputs: Inputs, name: str) -> Tensor:
    """The times r or t of inputs.

    Args:
        inputs: The inputs.
        name: Which of the two.

    Returns:
        The times [n].
    """
    _, r, t, _ = inputs
    return r if name == "r" else t


def with_time(inputs: Inputs, name: str, times: Tensor) -> Inputs:
    """Inputs with other times r or t.

    Args:
        inputs: The inputs.
        name: Which of the two.
        times: The other times [n].

    Returns:
        The inputs with them.
    """
    x, r, t, condition = inputs
    return (x, times, t, condition) if name == "r" else (x, r, times, condition)
