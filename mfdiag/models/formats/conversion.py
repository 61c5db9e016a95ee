"""The two lines of Python that convert a file of pickled objects into a file of weights, for its owner to run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mfdiag.models.formats.pickles import PickleContent, TensorHeader, UnknownObject

__all__ = ["Conversion", "conversion_of", "torchscript_conversion"]

_MAX_DEPTH = 4  # of the mappings that are searched for weights


class Conversion(NamedTuple):
    """The file that will hold the weights, and the two lines of Python that write it."""

    target: Path
    lines: tuple[str, str]


def conversion_of(path: Path, pickled: PickleContent, *, plain: bool) -> Conversion | None:
    """How to convert a file with the classes it was written with.

    Args:
        path: The file.
        pickled: What could be read of it.
        plain: Whether pickle or dill wrote the file, rather than torch.save.

    Returns:
        The conversion; None if the file holds neither weights nor modules, or could not be read far enough to know.
    """
    weights = _weights_expression(pickled.tree)
    if weights is None:
        return None
    dill = any(name.partition(".")[0] == "dill" for name in pickled.unknown)
    if plain:
        module = "dill" if dill else "pickle"
        read = f"import torch, {module}; content = {module}.load(open({str(path)!r}, 'rb'))"
    else:
        pickle_module = ", pickle_module=dill" if dill else ""
        read = f"import torch{', dill' if dill else ''}; content = torch.load({str(path)!r}, map_location='cpu', "
        read += f"weights_only=False{pickle_module})"
    return _conversion(path, read, weights)


def torchscript_conversion(path: Path) -> Conversion:
    """How to convert a file of TorchScript code."""
    read = f"import torch; content = torch.jit.load({str(path)!r}, map_location='cpu')"
    return _conversion(path, read, "content.state_dict()")


def _conversion(path: Path, read: str, weights: str) -> Conversion:
    target = path.with_name(f"{path.stem}_weights.pt")
    return Conversion(target, (read, f"torch.save({weights}, {str(target)!r})"))


def _weights_expression(tree: Any) -> str | None:
    """An expression in `content` for all weights in it."""
    if _is_module(tree):
        return "content.state_dict()"
    expressions = dict(_state_dicts(tree, "content", "", _MAX_DEPTH))
    if "" in expressions:
        return expressions[""]
    by_last_word = {name.rpartition(".")[2]: value for name, value in expressions.items()}
    named = by_last_word if len(by_last_word) == len(expressions) else expressions
    return "{" + ", ".join(f"{name!r}: {value}" for name, value in named.items()) + "}" if named else None


def _state_dicts(value: Any, expression: str, name: str, depth: int) -> Iterator[tuple[str, str]]:
    """Every module and state dict below `value`: its dotted name, and an expression for its state dict."""
    if _is_module(value):
        yield name, f"{expression}.state_dict()"
        return
    items = value.dict_items if isinstance(value, UnknownObject) else value
    if not (depth and isinstance(items, Mapping) and all(isinstance(key, str) for key in items)):
        return
    if any(isinstance(item, TensorHeader) for item in items.values()):
        only_tensors = all(isinstance(item, TensorHeader) for item in items.values())
        filtered = f"{{name: value for name, value in {expression}.items() if torch.is_tensor(value)}}"
        yield name, expression if only_tensors else filtered
        return
    for key, item in items.items():
        yield from _state_dicts(item, f"{expression}[{key!r}]", f"{name}.{key}" if name else key, depth - 1)


def _is_module(value: Any) -> bool:
    """Whether `value` is a pickled torch.nn.Module, or a call of a function that rebuilds one from its state."""
    if not isinstance(value, UnknownObject):
        return False
    arguments = (part.dict_items if isinstance(part, UnknownObject) else part for part in value.args[:1])
    states = [value.state, *(part.get("state") for part in arguments if isinstance(part, Mapping))]
    states = [state.dict_items if isinstance(state, UnknownObject) else state for state in states]
    return any(isinstance(state, Mapping) and "_modules" in state for state in states)
