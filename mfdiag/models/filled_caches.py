"""Tensors that a network computed from its parameters and stored before it was given to mfdiag.

They look like constants, and gradients through them would be missing. A stored tensor is a cache if the network
computes it again where it is absent, with a gradient to the parameters. Then it is left out, so that every call
computes it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mfdiag.errors import NETWORK_ERRORS
from mfdiag.models.call_caches import OF_MODULES, CallCaches, holds_tensor, reachable_containers, stored_tensors

__all__ = ["forget_filled_caches"]

_MOST_GROUPS = 32  # of stored tensors that are tried, each with up to two calls


class _StoredTensor(NamedTuple):
    """Where tensors are stored: an entry of a dictionary (as attributes are), or all of a list."""

    name: str
    container: Any
    key: Any
    value: Any

    def leave_out(self, *, empty: bool) -> None:
        """Remove the entry, or set it to None if `empty`; a flag is set to False."""
        if isinstance(self.container, list):
            self.container.clear()
        elif self.is_flag:
            self.container[self.key] = False
        elif empty:
            self.container[self.key] = None
        else:
            self.container.pop(self.key, None)

    def restore(self) -> None:
        """Store what was stored."""
        if isinstance(self.container, list):
            self.container[:] = self.value
        else:
            self.container[self.key] = self.value

    @property
    def is_flag(self) -> bool:
        """Whether it says that something was computed."""
        return self.value is True

    @property
    def has_gradient(self) -> bool:
        """Whether it holds a tensor with a gradient now."""
        value = self.container if isinstance(self.container, list) else self.container.get(self.key)
        return any(tensor.requires_grad for tensor in stored_tensors(value))


def forget_filled_caches(module: nn.Module, call: Callable[[], object]) -> list[str]:
    """Leave out stored tensors that the network computes from its parameters.

    Args:
        module: The network; what it stores is changed in place.
        call: One evaluation of it.

    Returns:
        Their places in words.
    """
    groups: dict[str, list[_StoredTensor]] = defaultdict(list)
    caches = CallCaches()
    caches.changed = reachable_containers(module)
    for place in _places(module, caches.changed):
        groups[re.sub(r"\d+", "#", place.name)].append(place)  # the same place of all blocks
    forgotten = []
    for places in [*groups.values()][:_MOST_GROUPS]:
        with_flag = [([*places, *flags], True) for flags in _flags(module, places)]
        ways = [(places, True), (places, False), *with_flag]
        if any(_is_computed(module, call, left_out, caches, empty=empty) for left_out, empty in ways):
            forgotten.append(places[0].name)
    return forgotten


def _flags(module: nn.Module, places: Sequence[_StoredTensor]) -> list[list[_StoredTensor]]:
    """The true attributes of modules that store tensors as attributes, by name."""
    storing = {id(place.container) for place in places}
    by_name: dict[str, list[_StoredTensor]] = defaultdict(list)
    for part in module.modules():
        if id(part.__dict__) in storing:
            for name, value in part.__dict__.items():
                if name not in OF_MODULES and value is True:
                    by_name[name].append(_StoredTensor(name, part.__dict__, name, value))
    return [*by_name.values()]


def _places(module: nn.Module, containers: Sequence[tuple[str, Any]]) -> Iterator[_StoredTensor]:
    attributes = set()
    for prefix, part in module.named_modules():
        attributes.add(id(part.__dict__))
        for name, value in part.__dict__.items():
            if name not in OF_MODULES and isinstance(value, Tensor):
                yield _StoredTensor(f"{prefix}.{name}".removeprefix("."), part.__dict__, name, value)
    for name, container in containers:
        if isinstance(container, dict) and id(container) not in attributes:
            for key, value in container.items():
                if holds_tensor(value, depth=1):  # containers within are listed themselves
                    yield _StoredTensor(name, container, key, value)
        elif isinstance(container, list) and any(isinstance(value, Tensor) for value in container):
            yield _StoredTensor(name, container, None, [*container])


def _is_computed(
    module: nn.Module, call: Callable[[], object], places: Sequence[_StoredTensor], caches: CallCaches, *, empty: bool
) -> bool:
    """Whether a call without stored tensors computes one of them from parameters; if so they are left out for good."""
    for place in places:
        place.leave_out(empty=empty)
    computed: list[_StoredTensor] = []
    before = caches.before(module)
    try:
        with _attributes_restored(module), _gradients(module):
            call()
            if any(place.has_gradient for place in places):
                computed = [p for p in places if not p.is_flag or p.container[p.key]]  # flags that the call set again
    except NETWORK_ERRORS:
        pass  # the network needs them
    finally:
        caches.after(before, learn=False)
        for place in places:
            if any(place is other for other in computed):
                place.leave_out(empty=empty)
            else:
                place.restore()
    return bool(computed)


@contextmanager
def _attributes_restored(module: nn.Module) -> Iterator[None]:
    """After this context, attributes and buffers have their values before."""
    parts = [part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]
    attributes = [dict(part.__dict__) for part in parts]
    buffers = [{name: b if b is None else b.clone() for name, b in part._buffers.items()} for part in parts]
    try:
        yield
    finally:
        for part, before, values in zip(parts, attributes, buffers, strict=True):
            for name in part.__dict__.keys() - before.keys():
                del part.__dict__[name]
            part.__dict__.update(before)
            part._buffers.update(values)


@contextmanager
def _gradients(module: nn.Module) -> Iterator[None]:
    """Within this context, results of parameters have a gradient."""
    frozen = [p for p in module.parameters() if p.is_leaf and not p.requires_grad and p.is_floating_point()]
    try:
        with torch.enable_grad():
            for p in frozen:
                p.requires_grad_(True)
            yield
    finally:
        for p in frozen:
            p.requires_grad_(False)
