"""Functions within a network that hold parts of it, such as hooks and lambdas written in its `__init__`.

A deep copy of a network shares them, so that they would still use the parameters of the original.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

__all__ = ["deepcopy_with_closures"]


def deepcopy_with_closures(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy of a network whose functions hold the parts of the copy.

    Args:
        module: The network.
        memo: As of `copy.deepcopy`.

    Returns:
        The copy.
    """
    functions = {id(f): f for part in module.modules() for f in _functions(part.__dict__.values())}
    own = {id(part) for part in module.modules()} | {id(value) for part in module.modules() for value in _tensors(part)}
    holding = [f for f in functions.values() if _holds(f, own, set())]
    for f in holding:
        memo[id(f)] = _with_empty_cells(f)
    copied = copy.deepcopy(module, memo)
    for f in holding:
        twin = memo[id(f)]
        for cell, empty in zip(f.__closure__ or (), twin.__closure__ or (), strict=True):
            if _filled(cell):
                empty.cell_contents = _copied(cell.cell_contents, memo)
        twin.__defaults__ = None if f.__defaults__ is None else tuple(_copied(v, memo) for v in f.__defaults__)
        twin.__kwdefaults__ = f.__kwdefaults__ and {name: _copied(v, memo) for name, v in f.__kwdefaults__.items()}
    return copied


def _with_empty_cells(function: FunctionType) -> FunctionType:
    cells = tuple(CellType() for _ in function.__closure__ or ())
    twin = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
    twin.__dict__.update(function.__dict__)
    return twin


def _functions(values: Iterable[Any]) -> Iterator[FunctionType]:
    """The functions among values, in containers of them, and in the closures of such functions."""
    pending, seen = list(values), set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, FunctionType):
            yield value
        pending += _inner(value)


def _inner(value: Any) -> list[Any]:
    """What a function or a container holds."""
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple | set):
        return list(value)
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    return [value.__self__, value.__func__] if isinstance(value, MethodType) else []


def _holds(value: Any, own: set[int], seen: set[int]) -> bool:
    """Whether a function or a container holds a module or a tensor of the network."""
    if id(value) in own:
        return True
    if id(value) in seen:
        return False
    seen.add(id(value))
    return any(_holds(inner, own, seen) for inner in _inner(value))


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """What a function of the copy holds instead: parts of the copy; all else is shared."""
    if id(value) in memo:
        return memo[id(value)]
    return copy.deepcopy(value, memo) if _holds(value, set(memo), set()) else value


def _filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - reading an empty cell raises
    except ValueError:
        return False
    return True


def _tensors(part: nn.Module) -> Iterator[Tensor]:
    yield from (p for p in part._parameters.values() if p is not None)
    yield from (b for b in part._buffers.values() if b is not None)
