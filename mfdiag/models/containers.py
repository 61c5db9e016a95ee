"""Reading checkpoint files without running anything in them: safetensors, and torch's zip and legacy formats."""

from __future__ import annotations

import argparse
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfdiag.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Container",
    "StateDict",
    "checkpoint_file",
    "container_of",
    "read_safetensors",
    "read_torch",
    "scalar",
    "subset",
    "weight_sets",
]

StateDict = dict[str, "Tensor"]


@dataclass
class Container:
    """What a file holds: `tree` is its outermost mapping, `metadata` a safetensors header's text entries."""

    tree: Mapping[Any, Any]
    metadata: dict[str, str] = field(default_factory=dict)


def checkpoint_file(path: str | os.PathLike[str]) -> Path:
    """`path` if it is a readable, non-empty file, else InputError."""
    file = Path(path)
    if file.is_dir():
        raise InputError(f"Expected a checkpoint file, but {file} is a folder; name a file inside it.")
    try:
        with file.open("rb") as stream:
            if stream.read(1):
                return file
    except FileNotFoundError:
        raise InputError(f"Expected a checkpoint file, but {file} does not exist; check the path.") from None
    except OSError as error:
        raise InputError(f"The checkpoint {file} cannot be read ({error.strerror}); check the path.") from error
    raise InputError(f"Expected a checkpoint, but {file} is empty; write or download it again.")


def container_of(path: Path) -> str:
    """The container by the file's first bytes: "safetensors", "torch zip" or "torch legacy"; else InputError."""
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"PK\x03\x04"):
        if zipfile.is_zipfile(path):
            return "torch zip"
        raise _damaged(path, "torch zip", "its table of contents is missing")
    if start[8:] == b"{":
        return "safetensors"
    if start[:1] == b"\x80":
        return "torch legacy"
    raise InputError(
        f"Expected a safetensors file or one written by torch.save, but {path} begins with {start!r}; "
        "convert it to one of these."
    )


def _damaged(path: Path, container: str, why: object) -> InputError:
    return InputError(
        f"Expected a complete {container} file, but {path} is truncated or damaged ({why}); copy or download it again."
    )


def read_safetensors(path: Path, *, load: bool) -> Container:
    """A safetensors file: tensors if `load`, else a slice of each (get_shape, get_dtype) with only the header read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt" if load else "numpy") as file:
            read = file.get_tensor if load else file.get_slice
            return Container({name: read(name) for name in file.keys()}, dict(file.metadata() or {}))  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(path, "safetensors", str(error).rstrip(".")) from error


def _plain_types() -> list[Any]:
    """Classes beyond tensors that training scripts store and that only hold values."""
    import numpy as np

    scalar_of = np.float64(0).__reduce__()[0]
    array_of = np.zeros(0).__reduce__()[0]
    dtypes = [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
    old = [(scalar_of, "numpy.core.multiarray.scalar"), (array_of, "numpy.core.multiarray._reconstruct")]
    paths = [pathlib.PosixPath, pathlib.PurePosixPath, pathlib.PureWindowsPath]
    return [argparse.Namespace, *paths, scalar_of, array_of, *old, np.ndarray, np.dtype, *dtypes]


def read_torch(path: Path, container: str, *, load: bool) -> Container:
    """A torch.save file read with weights_only; without `load` its tensors are on the meta device (no values).

    Raises InputError if it holds pickled objects other than tensors and plain values, or is damaged.
    """
    import torch

    zipped = container == "torch zip"
    try:
        with torch.serialization.safe_globals(_plain_types()):
            tree = torch.load(path, map_location="cpu" if load else "meta", weights_only=True, mmap=zipped and load)
    except Exception as error:  # damaged bytes raise almost anything: struct.error, AssertionError, AttributeError, ...
        raise _refused(path, container, error) from error
    if not isinstance(tree, Mapping):
        raise InputError(
            f"Expected a mapping of names to tensors, but {path} holds one {type(tree).__name__}; "
            "save model.state_dict() instead."
        )
    return Container(tree)


def _refused(path: Path, container: str, error: Exception) -> InputError:
    text = str(error)
    classes = re.findall(r"GLOBAL ([\w.]+)", text)
    if classes or isinstance(error, pickle.UnpicklingError) or "TorchScript" in text:
        what = "TorchScript code" if "TorchScript" in text else "pickled Python objects"
        named = f" ({classes[0]})" if classes else ", or is damaged"
        return InputError(
            f"Expected tensors and plain values, but {path} holds {what}{named}; mfdiag runs no code from a file: "
            "save model.state_dict() with torch.save and pass that file."
        )
    return _damaged(path, container, text.split("\n")[0].rstrip(".") or type(error).__name__)


def scalar(value: Any) -> int | float | str | bool | None:
    """`value` as a plain scalar if it is one (also a path or a one-element array or CPU tensor), else None."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if getattr(value, "shape", None) == () and not getattr(value, "is_meta", False):
        return value.item()
    return None


def subset(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose name starts with `prefix.`, named without it."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def weight_sets(tree: Mapping[Any, Any], described: bool) -> dict[str, dict[str, Any]]:
    """Every state dict in a file by its dotted place; "" is the file's own top level.

    A state dict is a mapping from names to tensors, without mappings inside. With `described`, the sets are this
    project's prefixes `raw.` and `ema.`. Optimiser states, whose keys are numbers, are not state dicts.
    """
    if described:
        return {key: found for key in ("raw", "ema") if (found := subset(tree, key))}
    return dict(_walk(tree, "", 3))


def _walk(tree: Mapping[Any, Any], place: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if not depth or not all(isinstance(name, str) for name in tree):
        return
    inner = {name: value for name, value in tree.items() if isinstance(value, Mapping)}
    tensors = {name: value for name, value in tree.items() if hasattr(value, "is_meta") or hasattr(value, "get_shape")}
    if tensors and not inner:
        yield place, tensors
    for name, value in inner.items():
        yield from _walk(value, f"{place}.{name}" if place else name, depth - 1)
