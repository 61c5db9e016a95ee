"""Dictionaries, lists and other containers in which a network stores tensors when it is called.

A tensor stored in one call and used in the next is a constant there: gradients through it would be missing, and a copy
of the network with other weights would use it, too. Containers count wherever a network's code reaches them: in its
attributes, its classes, the globals and defaults of its methods, and the caches of `functools`.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from torch import Tensor, nn

__all__ = [
    "OF_MODULES",
    "CallCaches",
    "Snapshot",
    "containers_restored",
    "holds_tensor",
    "reachable_containers",
    "stored_tensors",
]

OF_MODULES = frozenset(nn.Module().__dict__)
"""Attributes of every module: parameters, buffers, hooks."""

_HOLDERS = frozenset({"collections", "threading", "types", "weakref"})  # whose objects hold what others put there
_LIBRARIES = frozenset({"torch", "numpy", "mfdiag", *sys.stdlib_module_names})
_LRU = type(functools.lru_cache(lambda: None))
_STORE_GLOBAL = dis.opmap["STORE_GLOBAL"]
_MOST = 20_000  # containers and entries that are looked through; larger ones hold data rather than a cache


class _Container(NamedTuple):
    """A container that can change, its name for errors, and its entries at one time."""

    name: str
    container: Any
    entries: Any

    def changed(self) -> bool:
        """Whether an entry that holds a tensor was added or replaced since."""
        if isinstance(self.container, _LRU):
            return bool(self.container.cache_info().currsize > self.entries)
        before = {id(value) for value in _values(self.entries)}
        return any(id(value) not in before and holds_tensor(value) for value in _values(self.container))

    def restore(self) -> None:
        """Give the container its entries before."""
        container, entries = self.container, self.entries
        if isinstance(container, _LRU):
            container.cache_clear()  # what it returns again is computed again
        elif isinstance(container, list):
            container[:] = entries
        elif isinstance(container, set | deque):
            container.clear()
            (container.extend if isinstance(container, deque) else container.update)(entries)
        else:
            self._restore_names()

    def _restore_names(self) -> None:
        """Restore a dictionary, or the attributes of a class, entry by entry: others may read it meanwhile."""
        is_class = isinstance(self.container, type)
        own = vars(self.container) if is_class else self.container
        for name in [name for name in own if name not in self.entries]:
            delattr(self.container, name) if is_class else own.pop(name)
        for name, value in self.entries.items():
            if name not in own or own[name] is not value:
                setattr(self.container, name, value) if is_class else own.__setitem__(name, value)


Snapshot = list[_Container]
"""Containers and their entries before a call."""


class CallCaches:
    """The containers that the first call of a network has shown to store tensors. Copies learn anew.

    Attributes:
        changed: These containers and their places, in words; None before the first call.
    """

    def __init__(self) -> None:
        self.changed: list[tuple[str, Any]] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> CallCaches:
        return CallCaches()

    def forget(self) -> None:
        """Let the next call show again which containers store tensors."""
        self.changed = None

    def before(self, module: nn.Module) -> Snapshot:
        """The entries of the containers that a call may change."""
        return _snapshot(reachable_containers(module) if self.changed is None else self.changed)

    def after(self, snapshot: Snapshot, *, learn: bool) -> None:
        """Restore the containers that a call has changed. With `learn`, only these are looked at from now on."""
        changed = [entry for entry in snapshot if entry.changed()]
        for entry in changed:
            entry.restore()
        if learn:
            self.changed = [(entry.name, entry.container) for entry in changed]


@contextmanager
def containers_restored(module: nn.Module) -> Iterator[None]:
    """After this context, containers that a network stored tensors in have their entries before."""
    caches = CallCaches()
    snapshot = caches.before(module)
    try:
        yield
    finally:
        caches.after(snapshot, learn=False)


def _snapshot(containers: Iterable[tuple[str, Any]]) -> Snapshot:
    return [_Container(name, container, _entries(container)) for name, container in containers]


def _entries(container: Any) -> Any:
    if isinstance(container, _LRU):
        container.cache_clear()  # what an earlier call left may be of other weights
        return 0
    return dict(vars(container)) if isinstance(container, type) else container.copy()


def reachable_containers(module: nn.Module) -> list[tuple[str, Any]]:
    """Look up the containers that the code of a network reaches.

    Args:
        module: The network.

    Returns:
        Their names for errors, and the containers.
    """
    pending: list[tuple[str, Any]] = []
    for prefix, part in module.named_modules():
        place = f"{prefix}." if prefix else ""
        pending += [(f"{place}{name}", value) for name, value in part.__dict__.items() if name not in OF_MODULES]
        hooks = (*part._forward_pre_hooks.values(), *part._forward_hooks.values())
        pending += [(f"a hook of {prefix or type(part).__name__}", hook) for hook in hooks]
        pending += [(kind.__name__, kind) for kind in type(part).__mro__]
    seen: set[int] = set()
    containers = []
    while pending and len(seen) < _MOST:
        name, value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if _is_container(value):
            containers.append((name, value))
        pending += _inside(name, value)
    return containers


def _is_container(value: Any) -> bool:
    if isinstance(value, type):
        return _root(value) not in _LIBRARIES
    return isinstance(value, dict | list | set | deque | _LRU)


def _inside(name: str, value: Any) -> list[tuple[str, Any]]:
    """What a value holds that a network's code may write to."""
    if isinstance(value, Tensor | nn.Module):
        return []
    if isinstance(value, FunctionType):
        return _inside_function(value)
    if isinstance(value, Mapping | list | tuple | set | frozenset | deque):
        entries = list(_values(value)) if len(value) < _MOST else []
        if not isinstance(value, dict | list | tuple | set):
            entries += getattr(value, "__dict__", {}).values()
        return [(name, entry) for entry in entries if not isinstance(entry, str | int | float)]
    if isinstance(value, functools.partial):
        return [(name, entry) for entry in (value.func, *value.args, *value.keywords.values())]
    if isinstance(value, MethodType):
        return [(name, value.__func__), (name, value.__self__)]
    if isinstance(value, _LRU | staticmethod | classmethod):
        return [(name, value.__wrapped__)]
    if isinstance(value, property):
        return [(name, value.fget)]
    if _root(value) in (_LIBRARIES if isinstance(value, type) else _LIBRARIES - _HOLDERS):
        return []
    own = getattr(value, "__dict__", {})
    inner = [(f"{name}.{key}", entry) for key, entry in own.items() if not key.startswith("__")]
    return inner if isinstance(value, type) else [(name, own), *inner]  # an object keeps its attributes in a dictionary


def _inside_function(function: FunctionType) -> list[tuple[str, Any]]:
    """The closure, defaults and globals of a function of the user's."""
    if _root(function) in _LIBRARIES:
        return []
    name = function.__qualname__
    cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    values = (*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    inner = [(name, value) for value in values]
    names = _names(function.__code__)
    spaces = [function.__globals__]
    for key in names & function.__globals__.keys():
        value = function.__globals__[key]
        if isinstance(value, ModuleType) and value.__name__.partition(".")[0] not in _LIBRARIES:
            spaces.append(vars(value))
    inner += [(key, space[key]) for space in spaces for key in sorted(names & space.keys())]
    inner += [(name, function.__globals__)] if _has_global_statement(function.__code__) else []
    return [*inner, *([(name, function.__wrapped__)] if hasattr(function, "__wrapped__") else [])]


def _has_global_statement(code: CodeType) -> bool:
    """Whether a function, or one within it, assigns to a global name."""
    inner = any(_has_global_statement(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return inner or _STORE_GLOBAL in code.co_code[::2]  # an instruction has an even position, an argument an odd one


def _names(code: CodeType) -> set[str]:
    """The global names that a function and the functions within it use."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def _root(value: Any) -> str:
    """The package that a function, a class or the class of an object comes from."""
    place = value if isinstance(value, FunctionType | type) else type(value)
    return str(getattr(place, "__module__", "")).partition(".")[0]


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - reading an empty cell raises
    except ValueError:
        return False
    return True


def _values(container: Any) -> Iterator[Any]:
    entries = vars(container) if isinstance(container, type) else container
    return iter(list(entries.values() if isinstance(entries, Mapping) else entries))


def stored_tensors(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """The tensors that a value is or holds.

    Args:
        value: Any value.
        depth: How many containers within containers to look into.

    Yields:
        The tensors.
    """
    if isinstance(value, Tensor):
        yield value
    elif depth and not isinstance(value, str | int | float | nn.Module | type | ModuleType | FunctionType):
        inner = _values(value) if isinstance(value, Mapping | list | tuple | set | deque) else ()
        for entry in (*inner, *getattr(value, "__dict__", {}).values()):
            yield from stored_tensors(entry, depth - 1)


def holds_tensor(value: Any, depth: int = 4) -> bool:
    """Whether `stored_tensors` yields any."""
    return next(stored_tensors(value, depth), None) is not None
