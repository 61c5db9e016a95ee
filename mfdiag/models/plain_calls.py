"""Calls of a network as a plain function of its inputs: eager, with its activations kept and its buffers as they were.

A gradient of each sample and derivatives along tangents need no more than that, and what a training run adds stands in
their way: activations that are computed again in the backward pass (`torch.utils.checkpoint`), compiled code, counters
and running statistics in buffers, tensors computed once and stored in attributes, inputs that are written to, and casts
to a precision other than that of the run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mfdiag.errors import InputError, abbreviated
from mfdiag.models.call_caches import CallCaches, Snapshot, containers_restored
from mfdiag.models.factory import RUNS_EAGERLY
from mfdiag.models.filled_caches import forget_filled_caches
from mfdiag.models.open_calls import begin_call, end_calls_within

__all__ = [
    "PlainCalls",
    "activations_kept",
    "attributes_restored",
    "make_calls_plain",
    "plain_calls",
    "replaced_parameters_alone",
]

_CASTS = {
    Tensor.float: torch.float32,
    Tensor.double: torch.float64,
    Tensor.half: torch.float16,
    Tensor.bfloat16: torch.bfloat16,
}
_PRECISIONS = frozenset(_CASTS.values())
_MAX_CHANGED = 4  # buffers that a note lists
_ATTRIBUTE = "_mfdiag_plain_calls"  # of a module that `make_calls_plain` prepared


def make_calls_plain(
    module: nn.Module, dtype: torch.dtype, trained_in: frozenset[torch.dtype] = frozenset()
) -> nn.Module:
    """Prepare a network so that each of its calls is a plain function of its inputs.

    Args:
        module: The network, with parameters in `dtype`. It is changed in place. A second preparation is for another
            precision.
        dtype: The precision of the run.
        trained_in: The precisions of its parameters before that. Casts to them give `dtype`, as the parameters have it.

    Returns:
        `module` itself.
    """
    if (calls := plain_calls(module)) is not None:
        calls.follow(dtype)
    else:
        module.__dict__[_ATTRIBUTE] = calls = PlainCalls(module, dtype, trained_in)
        module.register_forward_pre_hook(calls.enter, prepend=True)
        module.register_forward_hook(calls.leave, always_call=True)
    return module


def plain_calls(module: nn.Module) -> PlainCalls | None:
    """How the calls of `module` were prepared; None if they were not."""
    return module.__dict__.get(_ATTRIBUTE)


class _OpenCall(NamedTuple):
    """What to undo after a call: contexts, buffers and copies, attributes, containers, versions of copied inputs."""

    stack: ExitStack
    containers: Snapshot
    buffers: dict[str, Tensor]
    copies: dict[str, tuple[Tensor, int]]
    attributes: dict[tuple[str, str], Any]
    inputs: list[tuple[Tensor, int]]


class PlainCalls:
    """The hooks around the calls of one network, and what its first call has shown.

    Attributes:
        changed: Buffers that calls change, by name. Every call starts from their values as loaded.
        stored: Attributes that calls set to a tensor, as (module, attribute), and others that they set on the same
            module. Every call starts from their values before.
        filled: Places of tensors that the network had stored before its first call here.
        caches: Containers in which calls store tensors. Every call starts from their entries before.
        followed: Precisions that the network casts to, and for which it gets that of the run.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, trained_in: frozenset[torch.dtype] = frozenset()) -> None:
        self.changed: set[str] = set()
        self.stored: set[tuple[str, str]] = set()
        self.followed: set[torch.dtype] = set()
        self.filled: list[str] = []
        self.caches = CallCaches()
        self._trained_in = trained_in & _PRECISIONS
        self._autocast: list[str] = []
        self._writes_inputs = self._casts_modules = False
        self._compiled = _has_compiled_parts(module)
        self._to_follow: frozenset[torch.dtype] = frozenset()
        self._learning = self._unseen = True
        self._has_prelu = any(isinstance(part, nn.PReLU) for part in module.modules())
        self._kept: frozenset[str | tuple[str, str]] = frozenset()
        self._containers_kept = False
        self._open: list[_OpenCall] = []
        self.follow(dtype)

    def enter(self, module: nn.Module, args: Any) -> Any:
        """Before a call: copies of what it may change, and the contexts in which it runs.

        Args:
            module: The network.
            args: Arguments of the call.

        Returns:
            The arguments, as copies if the network may write to them.
        """
        with ExitStack() as stack:
            stack.enter_context(activations_kept())
            stack.enter_context(_without_autocast(self._autocast))
            if self._compiled:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if self._has_prelu:
                stack.enter_context(_ElementaryPrelu())
            casts = self._to_follow if self._learning else frozenset(self.followed)
            if casts:
                stack.enter_context(_FollowPrecision(casts, self.dtype, self.followed))
            if self._learning or self._casts_modules:
                stack.enter_context(self._modules_uncast())
            if self._learning:
                stack.enter_context(_own_parameters_alone(module))
            if self._learning or self._writes_inputs:
                args = tuple(a.clone() if isinstance(a, Tensor) else a for a in args)
            if self._unseen:
                self._unseen = False
                self.filled = forget_filled_caches(module, lambda: module.forward(*args))
            names = _buffer_names(module) if self._learning else self.changed
            saved = {name: b for name in names if (b := _buffer(module, name)) is not None}
            copies = {name: buffer.clone() for name, buffer in saved.items()}
            for name, copied in copies.items():
                _set_buffer(module, name, copied)
            self._open.append(
                _OpenCall(
                    stack.pop_all(),
                    self.caches.before(module),
                    saved,
                    {name: (b, b._version) for name, b in copies.items()},
                    dict(_attributes(module))
                    if self._learning
                    else {place: _value(module, place) for place in self.stored},
                    [(a, a._version) for a in args if isinstance(a, Tensor)] if self._learning else [],
                )
            )
            begin_call(self, partial(self._undo, module, None))
        return args

    def leave(self, module: nn.Module, args: Any, out: Any) -> None:
        """After a call, also one that failed.

        Args:
            module: The network.
            args: Arguments of the call.
            out: What it returned; None if it failed.
        """
        if self._open:  # otherwise the call has not begun
            end_calls_within(self)
            self._undo(module, out)

    def _undo(self, module: nn.Module, out: Any) -> None:
        before = self._open.pop()
        for name, buffer in before.buffers.items():
            copied, version = before.copies[name]
            if _buffer(module, name) is not copied or copied._version != version:
                self.changed.add(name)
                if name in self._kept:
                    continue
            _set_buffer(module, name, buffer)
        self._writes_inputs = self._writes_inputs or any(a._version != version for a, version in before.inputs)
        if self._learning:
            self.stored.update(_stored_since(module, before.attributes))
        for place in self.stored - self._kept:
            _set_attribute(module, place, before.attributes.get(place, _ABSENT))
        if not self._containers_kept:
            self.caches.after(before.containers, learn=self._learning and out is not None)
        self._learning = self._learning and out is None  # a call that failed shows nothing
        before.stack.close()

    @contextmanager
    def keeping(self, module: nn.Module, name: str | tuple[str, str]) -> Iterator[None]:
        """Within this context, calls leave a buffer of `changed`, or an attribute of `stored`, as they set it."""
        if isinstance(name, str):
            buffer, self._kept = _buffer(module, name), frozenset({name})
        else:
            of_module = {place: _value(module, place) for place in self.stored if place[0] == name[0]}
            self._kept = frozenset(of_module)
        try:
            yield
        finally:
            self._kept = frozenset()
            if isinstance(name, str):
                _set_buffer(module, name, buffer)
            else:
                for place, value in of_module.items():
                    _set_attribute(module, place, value)

    @contextmanager
    def keeping_containers(self, module: nn.Module) -> Iterator[None]:
        """Within this context, calls leave the containers of `caches` as they changed them."""
        before = self.caches.before(module)
        self._containers_kept = True
        try:
            yield
        finally:
            self._containers_kept = False
            for entry in before:
                entry.restore()

    def follow(self, dtype: torch.dtype) -> None:
        """Give the network `dtype` where it casts to the precision of its parameters, or in float64 to float32.

        The next call shows again which of these casts occur.
        """
        self.dtype, self._learning = dtype, True
        self.caches.forget()
        single = frozenset({torch.float32} if dtype == torch.float64 else ())
        self._to_follow = (self._trained_in | single) - {dtype}

    @contextmanager
    def _modules_uncast(self) -> Iterator[None]:
        """Within this context, a module's own `float()` or `to()` that gives the run's precision leaves it as it is.

        It would write to the parameters that stand for the module's own within derivatives, which ends the process.
        """
        plain = nn.Module._apply

        def apply(part: nn.Module, function: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
            self._casts_modules = True
            first = next(part.parameters(), None)
            if first is not None:
                probe = torch.empty(0, dtype=first.dtype, device=first.device)
                moved = function(probe)
                if (moved.dtype, moved.device) == (probe.dtype, probe.device):
                    return part
            return plain(part, function, *args, **kwargs)

        nn.Module._apply = apply  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            nn.Module._apply = plain  # type: ignore[method-assign]

    def notes(self, module: nn.Module) -> list[str]:
        """Sentences about what differs from the network as it was trained."""
        notes = []
        if self._compiled or any(RUNS_EAGERLY in part.__dict__ for part in module.modules()):
            notes.append("compiled and scripted parts of the network run eagerly, with the same result.")
        if self.changed:
            names = abbreviated(sorted(self.changed), _MAX_CHANGED)
            notes.append(
                f"the network changes its buffers when it is called ({names}). Its output does not depend on that; "
                "each call starts from their values in the file."
            )
        if self.filled:
            notes.append(
                f"the network had stored tensors that it computes from its parameters ({abbreviated(self.filled, 4)}); "
                "each call computes them again, so that gradients pass through them."
            )
        if self.followed:
            casts = ", ".join(sorted(_name(dtype) for dtype in self.followed))
            notes.append(f"the network casts to {casts} within; these casts give {_name(self.dtype)}, as --dtype says.")
        if self._autocast:
            notes.append(f"torch.autocast within the network is off: it runs in {_name(self.dtype)}, as --dtype says.")
        return notes


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _buffer_names(module: nn.Module) -> list[str]:
    """The places of buffers that can be replaced. TorchScript holds its own."""
    owners = [item for item in module.named_modules() if not isinstance(item[1], torch.jit.ScriptModule)]
    return [f"{prefix}.{local}".removeprefix(".") for prefix, owner in owners for local in owner._buffers]


def _buffer(module: nn.Module, name: str) -> Tensor | None:
    prefix, _, local = name.rpartition(".")
    return module.get_submodule(prefix)._buffers.get(local)


def _set_buffer(module: nn.Module, name: str, value: Tensor | None) -> None:
    prefix, _, local = name.rpartition(".")
    module.get_submodule(prefix)._buffers[local] = value


_ABSENT = object()  # value of an attribute that does not exist


def _attributes(module: nn.Module) -> Iterator[tuple[tuple[str, str], Any]]:
    """The attributes of each module, other than its parameters, buffers and modules."""
    for prefix, owner in module.named_modules():
        if not isinstance(owner, torch.jit.ScriptModule):
            for local, value in owner.__dict__.items():
                yield (prefix, local), value


def _value(module: nn.Module, place: tuple[str, str]) -> Any:
    prefix, local = place
    return module.get_submodule(prefix).__dict__.get(local, _ABSENT)


def _set_attribute(module: nn.Module, place: tuple[str, str], value: Any) -> None:
    prefix, local = place
    attributes = module.get_submodule(prefix).__dict__
    if value is _ABSENT:
        attributes.pop(local, None)
    else:
        attributes[local] = value


def _stored_since(module: nn.Module, before: Mapping[tuple[str, str], Any]) -> list[tuple[str, str]]:
    """The attributes of modules that hold a tensor since `before`: these, and others set since, such as flags."""
    changed = {place: value for place, value in _attributes(module) if before.get(place, _ABSENT) is not value}
    storing = {prefix for (prefix, _), value in changed.items() if isinstance(value, Tensor)}
    return [place for place in changed if place[0] in storing]


@contextmanager
def attributes_restored(module: nn.Module) -> Iterator[None]:
    """After this context, attributes and containers that hold a tensor since then have their values before."""
    before = dict(_attributes(module))
    try:
        with containers_restored(module):
            yield
    finally:
        for place in _stored_since(module, before):
            _set_attribute(module, place, before.get(place, _ABSENT))


class _ParameterUses(TorchFunctionMode):
    """Refuses the use of parameters whose gradients would be missing without a word."""

    def __init__(self, refuse: Callable[[nn.Parameter], None]) -> None:
        super().__init__()
        self.refuse = refuse

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not isinstance(out, Tensor | list | tuple) or isinstance(out, torch.Size):
            return out  # a shape, a device or a dtype
        pending = [*args, *(kwargs or {}).values()]
        while pending:
            value = pending.pop()
            if isinstance(value, list | tuple):
                pending += value
            elif isinstance(value, nn.Parameter):
                self.refuse(value)
        return out


def _own_parameters_alone(module: nn.Module) -> TorchFunctionMode:
    """Within this context, the network uses no trained parameters but its own."""
    own = {id(p) for p in module.parameters()}

    def refuse(parameter: nn.Parameter) -> None:
        if parameter.requires_grad and id(parameter) not in own:
            raise InputError(
                f"Expected the network to use parameters of its own alone, but it uses one of shape "
                f"{tuple(parameter.shape)} that is not among them, as through a global name, a weak reference or a "
                "plain list: register it in the network, as with nn.ModuleList, or freeze it with "
                "requires_grad_(False)."
            )

    return _ParameterUses(refuse)


def replaced_parameters_alone(module: nn.Module) -> TorchFunctionMode:
    """Within this context, a network that is called with other tensors in place of its parameters uses these alone."""
    names = {id(p): name for name, p in module.named_parameters()}

    def refuse(parameter: nn.Parameter) -> None:
        if id(parameter) in names:
            raise InputError(
                f"Expected the network to reach its parameter {names[id(parameter)]} through the module that holds it, "
                "but it uses a second reference, as in a plain list, functools.partial or a closure: use the "
                "module's attribute in forward, or nn.ParameterList."
            )

    return _ParameterUses(refuse)


@contextmanager
def _without_autocast(seen: list[str]) -> Iterator[None]:
    """Within this context, `torch.autocast` casts nothing; `seen` gets the devices that it was entered for."""
    kind = torch.amp.autocast_mode.autocast
    before = kind.__enter__, kind.__exit__

    def enter(self: Any) -> Any:
        if self._enabled and not seen:
            seen.append(self.device)
        return self

    kind.__enter__, kind.__exit__ = enter, lambda self, *error: False  # type: ignore[method-assign]
    try:
        yield
    finally:
        kind.__enter__, kind.__exit__ = before  # type: ignore[method-assign]


class _FollowPrecision(TorchFunctionMode):
    """Casts to one of `casts` give `dtype` instead; those that occur are added to `followed`."""

    def __init__(self, casts: frozenset[torch.dtype], dtype: torch.dtype, followed: set[torch.dtype]) -> None:
        super().__init__()
        self.casts, self.dtype, self.followed = casts, dtype, followed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if _CASTS.get(func) in self.casts:
            self.followed.add(_CASTS[func])
            return args[0].to(self.dtype)
        if func in (Tensor.to, Tensor.type):
            args = tuple(self._replaced(a) for a in args)
        if "dtype" in kwargs:
            kwargs["dtype"] = self._replaced(kwargs["dtype"])
        return func(*args, **kwargs)

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, torch.dtype) and value in self.casts:
            self.followed.add(value)
            return self.dtype
        return value


class _ElementaryPrelu(TorchFunctionMode):
    """PReLU in elementary steps: torch's own has no right gradient under two levels of vmap."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func not in (torch.nn.functional.prelu, torch.prelu) or kwargs:
            return func(*args, **(kwargs or {}))
        x, weight = args
        slope = weight.view(-1, *[1] * (x.ndim - 2)) if x.ndim > 1 else weight
        return torch.where(x > 0, x, slope * x)


@contextmanager
def activations_kept() -> Iterator[None]:
    """Within this context, `torch.utils.checkpoint` keeps activations instead of computing them again.

    The second computation would see the parameters of the module, not those that `functional_call` put in their place.
    """
    place = torch.utils.checkpoint
    names = {"CheckpointFunction": _Direct, "_checkpoint_without_reentrant_generator": _nothing_around}
    before = {name: getattr(place, name) for name in names if hasattr(place, name)}
    for name in before:
        setattr(place, name, names[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(place, name, value)


class _Direct:
    """Stands for `CheckpointFunction`, whose arguments are the function, a flag and the function's own arguments."""

    @staticmethod
    def apply(function: Any, preserve: bool, *args: Any) -> Any:
        return function(*args)


def _nothing_around(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield


def _has_compiled_parts(module: nn.Module) -> bool:
    """Whether `torch.compile` made any of a network's modules, their methods and the functions beside them."""
    if "torch._dynamo" not in sys.modules:
        return False
    for part in module.modules():
        if hasattr(part, "_orig_mod") or part._compiled_call_impl is not None:
            return True
        beside = getattr(type(part).forward, "__globals__", {})
        spaces = (part.__dict__, *(vars(kind) for kind in type(part).__mro__ if kind is not nn.Module), beside)
        if any(hasattr(value, "_torchdynamo_orig_callable") for space in spaces for value in list(space.values())):
            return True
    return False
