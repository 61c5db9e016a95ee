"""What a checkpoint file holds, whichever of the known formats it has, without running anything in it."""

from __future__ import annotations

import os
import pathlib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfdiag.errors import InputError
from mfdiag.models.formats.archives import damaged
from mfdiag.models.formats.exported import Program, read_exported
from mfdiag.models.formats.shards import INDEX_SUFFIX, read_safetensors, read_sharded
from mfdiag.models.formats.torchfile import read_torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Container",
    "StateDict",
    "checkpoint_file",
    "container_of",
    "is_tensor",
    "read_container",
    "scalar",
    "subset",
    "training_step",
    "weight_sets",
]

StateDict = dict[str, "Tensor"]

_STEP_KEYS = ("step", "steps", "train_steps", "global_step", "iteration")


@dataclass
class Container:
    """A checkpoint: `tree` is its outermost mapping, in which each tensor is a tensor or a `pickles.Header`.

    `kind` is the format, `files` the files it lies in, `metadata` a safetensors header's text entries, `program` the
    network itself where the file holds an exported one.
    """

    kind: str
    tree: Mapping[Any, Any]
    files: list[Path]
    metadata: dict[str, str] = field(default_factory=dict)
    program: Program | None = None


def read_container(path: str | os.PathLike[str], *, load: bool) -> Container:
    """Read a checkpoint: its weights with `load`, else only names, shapes and plain values, without importing torch.

    `path` is a safetensors file, the index of a sharded one or the folder with that index, a file written by
    torch.save (zip or legacy), or one written by torch.export.save. Weights are memory-mapped where the format allows.
    Raises InputError if it is missing, empty, damaged, of another format, or holds code.
    """
    file = checkpoint_file(path)
    kind = container_of(file)
    if kind == "safetensors":
        tensors, metadata = read_safetensors(file, load=load)
        return Container(kind, tensors, [file], metadata)
    if kind == "sharded safetensors":
        tree, shards = read_sharded(file, load=load)
        return Container(kind, tree, [file, *shards])
    if kind == "torch.export":
        exported, program = read_exported(file, load=load)
        return Container(kind, exported, [file], program=program)
    return Container(kind, read_torch(file, kind, load=load), [file])


def checkpoint_file(path: str | os.PathLike[str]) -> Path:
    """`path` if it is a readable, non-empty file, or the index in it if it is a folder; else InputError."""
    file = Path(path)
    if file.is_dir():
        found = sorted(file.glob(f"*{INDEX_SUFFIX}"))
        if len(found) != 1:
            raise InputError(f"Expected a checkpoint file, but {file} is a folder; name a file inside it.")
        file = found[0]
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
    """The format by the file's first bytes, or by a zip archive's records; InputError if it is none that is known."""
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"PK\x03\x04"):
        return _archive(path)
    if start[8:] == b"{":
        return "safetensors"
    if start[:1] == b"\x80":
        return "torch legacy"
    if path.name.endswith(INDEX_SUFFIX):
        return "sharded safetensors"
    raise InputError(
        f"Expected a safetensors file or one written by torch.save, but {path} begins with {start!r}; "
        "convert it to one of these."
    )


def _archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] or name for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise damaged(path, "torch zip", "its table of contents is missing") from error
    if any(name.endswith("serialized_exported_program.json") for name in names):
        raise InputError(
            f"Expected torch.export's format of torch 2.9 or later, but {path} has an older one; load it with "
            "the torch it was written by, and save program.state_dict with torch.save."
        )
    if "archive_format" in names:
        return "torch.export"
    return "TorchScript" if "constants.pkl" in names else "torch zip"


def is_tensor(value: Any) -> bool:
    """Whether `value` is a tensor, or stands for one."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def scalar(value: Any) -> int | float | str | bool | None:
    """`value` as a plain scalar if it is one (also a path or a one-element CPU tensor), else None."""
    if isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else None
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return None


def training_step(tree: Mapping[Any, Any]) -> int | None:
    """The step at which a checkpoint was written, where it says so."""
    found = (scalar(tree[key]) for key in _STEP_KEYS if key in tree)
    return next((int(value) for value in found if isinstance(value, int | float)), None)


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
    tensors = {name: value for name, value in tree.items() if is_tensor(value)}
    if tensors and not inner:
        yield place, tensors
    for name, value in inner.items():
        yield from _walk(value, f"{place}.{name}" if place else name, depth - 1)
