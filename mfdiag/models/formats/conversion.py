"""The two lines of Python that turn a file of pickled objects into a file of weights, for its owner to run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mfdiag.models.formats.pickles import Header, Opaque, Pickled

__all__ = ["conversion", "torchscript_conversion"]


def conversion(path: Path, pickled: Pickled, *, plain: bool) -> tuple[Path, str, str] | None:
    """Where the weights will be, and the two lines that read `path` with its classes and write them there.

    `plain` if the file was written by pickle or dill and not by torch.save. None if it holds neither weights nor
    modules, or could not be read far enough to know.
    """
    weights = _weights(pickled.tree)
    if weights is None:
        return None
    dill = any(name.partition(".")[0] == "dill" for name in pickled.unknown)
    if plain:
        module = "dill" if dill else "pickle"
        read = f"import torch, {module}; content = {module}.load(open({str(path)!r}, 'rb'))"
    else:
        more = ", pickle_module=dill" if dill else ""
        read = f"import torch{', dill' if dill else ''}; content = torch.load({str(path)!r}, map_location='cpu', "
        read += f"weights_only=False{more})"
    return _written(path, read, weights)


def torchscript_conversion(path: Path) -> tuple[Path, str, str]:
    """The same for TorchScript code."""
    read = f"import torch; content = torch.jit.load({str(path)!r}, map_location='cpu')"
    return _written(path, read, "content.state_dict()")


def _written(path: Path, read: str, weights: str) -> tuple[Path, str, str]:
    target = path.with_name(f"{path.stem}_weights.pt")
    return target, read, f"torch.save({weights}, {str(target)!r})"


def _weights(tree: Any) -> str | None:
    """An expression in `content` for all weights in it."""
    if _is_module(tree):
        return "content.state_dict()"
    found = dict(_places(tree, "content", "", 4))
    if "" in found:
        return found[""]
    short = {name.rpartition(".")[2]: value for name, value in found.items()}
    named = short if len(short) == len(found) else found
    return "{" + ", ".join(f"{name!r}: {value}" for name, value in named.items()) + "}" if named else None


def _places(value: Any, expression: str, name: str, depth: int) -> Iterator[tuple[str, str]]:
    """Every module and state dict below `value`: its dotted name, and an expression for its state dict."""
    if _is_module(value):
        yield name, f"{expression}.state_dict()"
        return
    items = value.items_ if isinstance(value, Opaque) else value
    if not (depth and isinstance(items, Mapping) and all(isinstance(key, str) for key in items)):
        return
    if any(isinstance(item, Header) for item in items.values()):
        whole = all(isinstance(item, Header) for item in items.values())
        tensors = f"{{name: value for name, value in {expression}.items() if torch.is_tensor(value)}}"
        yield name, expression if whole else tensors
        return
    for key, item in items.items():
        yield from _places(item, f"{expression}[{key!r}]", f"{name}.{key}" if name else key, depth - 1)


def _is_module(value: Any) -> bool:
    """Whether `value` is a pickled torch.nn.Module, also one wrapped by a function that rebuilds it from its state."""
    if not isinstance(value, Opaque):
        return False
    wrapped = (part.items_ if isinstance(part, Opaque) else part for part in value.args[:1])
    states = [value.state, *(part.get("state") for part in wrapped if isinstance(part, Mapping))]
    states = [state.items_ if isinstance(state, Opaque) else state for state in states]
    return any(isinstance(state, Mapping) and "_modules" in state for state in states)
