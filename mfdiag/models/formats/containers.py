"""What a checkpoint file holds, in any of the known formats, without running any code in it."""

from __future__ import annotations

import json
import os
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mfdiag.errors import InputError
from mfdiag.models.formats.archives import damaged_file
from mfdiag.models.formats.dcp import read_dcp
from mfdiag.models.formats.deepspeed import read_zero
from mfdiag.models.formats.exported import Program, read_exported
from mfdiag.models.formats.flaxfile import is_flax, read_flax
from mfdiag.models.formats.folders import DCP, RANKS, ZERO, FolderLayout, find_layout, is_index
from mfdiag.models.formats.named_files import regular_file
from mfdiag.models.formats.orbax import orbax_folder, read_orbax
from mfdiag.models.formats.ranks import read_ranks
from mfdiag.models.formats.shards import read_safetensors, read_sharded
from mfdiag.models.formats.torchfile import read_torch
from mfdiag.storage import is_folder

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Container",
    "StateDict",
    "is_tensor",
    "read_container",
    "scalar",
    "tensors_at",
    "tensors_below",
    "training_step",
    "weight_sets",
]

StateDict = dict[str, "Tensor"]

_TOO_MANY_STEPS = 2**63  # does not fit a table
_STEP_KEYS = ("step", "steps", "train_steps", "global_step", "global_steps", "iteration")
_MAX_DEPTH = 5  # of the mappings that are searched for state dicts
_DEEP = 2  # levels of these that are searched outside optimizers alone
_OPTIMIZER = re.compile(r"(^|\.)opt(im|_|$|\.)", re.I)
_CALLBACKS = "callbacks"  # where Lightning stores the state of callbacks, an average among them
_LISTS = re.compile("shadow|ema|averag", re.I)  # names of lists of tensors that are averages


@dataclass
class Container:
    """The content of a checkpoint.

    `kind` is its format. `tree` is its outermost mapping, in which each tensor is a tensor or a `TensorHeader`. `path`
    is the file, or the folder if several files hold the weights. `files` are the files that were read, the index of
    shards first. `metadata` are the text entries of a safetensors header. `program` is the network itself, if the file
    holds an exported program. `config` are the values of the JSON files that describe the networks of a folder. `notes`
    are sentences about files of a folder that are not read.
    """

    kind: str
    tree: Mapping[Any, Any]
    path: Path
    files: list[Path]
    metadata: dict[str, str] = field(default_factory=dict)
    program: Program | None = None
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_container(path: str | os.PathLike[str], *, load: bool) -> Container:
    """Read a checkpoint: a file of safetensors, torch or flax, an index of shards, or a folder of such files.

    Folders are those of transformers, diffusers, accelerate, torch.distributed.checkpoint, DeepSpeed and Orbax, and
    those with one index or one file of weights. With `load`, the weights are tensors, memory-mapped where the format
    allows. Without it, only names, shapes and plain values are read, and torch is not imported. Raises InputError if a
    file is missing, empty, damaged or of another format, or holds code.
    """
    file = Path(path)
    return _read_folder(file, load) if is_folder(file) else _read_file(regular_file(file), load)


def _read_file(file: Path, load: bool) -> Container:
    kind = _container_format(file)
    if kind == "flax msgpack":
        return Container(kind, read_flax(file, load=load), file, [file])
    if kind == "safetensors":
        tensors, metadata = read_safetensors(file, load=load)
        return Container(kind, tensors, file, [file], metadata)
    if kind.startswith("sharded"):
        tree, shards = read_sharded(file, lambda shard: _read_file(regular_file(shard), load).tree)
        return Container(kind, tree, file, [file, *shards])
    if kind == "torch.export":
        exported, program = read_exported(file, load=load)
        return Container(kind, exported, file, [file], program=program)
    return Container(kind, read_torch(file, kind, load=load), file, [file])


def _read_folder(folder: Path, load: bool) -> Container:
    if (arrays := orbax_folder(folder)) is not None:
        tree, files = read_orbax(arrays, load=load)
        return Container("Orbax", tree, folder, files)
    layout = find_layout(folder)
    if layout.kind == DCP:
        tree, files = read_dcp(folder, load=load)
        return Container(DCP, tree, folder, files)
    if layout.kind == RANKS:
        tree = read_ranks(layout.parts, load=load)
        return Container(RANKS, tree, folder, list(layout.parts.values()))
    if layout.kind == ZERO:
        zero = read_zero(layout.parts.pop(""), load=load)
        rest = _read_parts(layout, load)
        tree = zero.tree | {name: part.tree for name, part in rest.parts.items()}
        files = [*zero.files, *(file for part in rest.parts.values() for file in part.files)]
        return Container(zero.kind, tree, folder, files, notes=[*zero.notes, *rest.notes])
    config = {file.parent.name if file.parent != folder else "config": _json(file) for file in layout.configs}
    if layout.parts.keys() == {""}:
        file = regular_file(layout.parts[""])
        return replace(_read_file(file, load), config=config)
    parts, notes = _read_parts(layout, load)
    kinds = " and ".join(dict.fromkeys(part.kind for part in parts.values()))
    return Container(
        kind=f"folder of {kinds}",
        tree={name: part.tree for name, part in parts.items()},
        path=folder,
        files=[file for part in parts.values() for file in part.files],
        config=config,
        notes=[*(f"{name} is another network of {folder}; it is not read." for name in layout.left_out), *notes],
    )


class _Parts(NamedTuple):
    """The parts of a folder by the name of their weights, and sentences about those that are not read."""

    parts: dict[str, Container]
    notes: list[str]


def _read_parts(layout: FolderLayout, load: bool) -> _Parts:
    result = _Parts({}, [])
    for name, part in layout.parts.items():
        try:
            content = read_container(part, load=load)
        except InputError as error:
            if name not in layout.optional:
                raise
            result.notes.append(f"{part} is not read. {error}")
        else:
            result.parts[name] = content
    return result


def _json(file: Path) -> Any:
    """The mapping in a JSON file; empty for any other content, which says nothing about the weights."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _container_format(path: Path) -> str:
    """The format of a file, from its first bytes or the records of its zip archive. Raises InputError for others."""
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"PK\x03\x04"):
        return _zip_format(path)
    if start[8:] == b"{":
        return "safetensors"
    if start[:1] == b"\x80":
        return "torch legacy"
    if is_flax(start):
        return "flax msgpack"
    if is_index(path.name):
        return "sharded safetensors" if ".safetensors." in path.name else "sharded torch"
    raise InputError(
        f"Expected a file of safetensors, torch.save or flax, but {path} begins with {start!r}; "
        "convert it to one of these."
    )


def _zip_format(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] or name for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise damaged_file(path, "torch zip", "its table of contents is missing") from error
    if any(name.endswith("serialized_exported_program.json") for name in names):
        raise InputError(
            f"Expected the torch.export format of torch 2.9 or later, but {path} has an older one; load it with the "
            "version of torch that wrote it, and save program.state_dict with torch.save."
        )
    if "archive_format" in names:
        return "torch.export"
    return "TorchScript" if "constants.pkl" in names else "torch zip"


def is_tensor(value: Any) -> bool:
    """Whether `value` is a tensor or a `TensorHeader`."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def scalar(value: Any) -> int | float | str | bool | None:
    """`value` as a plain scalar; also from a path or a tensor of shape (). None if it is none of these."""
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
    """The training step that a checkpoint records, or None; a number that cannot count steps is none."""
    values = (scalar(tree[key]) for key in _STEP_KEYS if key in tree)
    counts = (value for value in values if isinstance(value, int | float) and 0 <= value < _TOO_MANY_STEPS)
    return next(map(int, counts), None)


def tensors_below(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The tensors whose names start with `prefix.`, under their names without it."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def weight_sets(tree: Mapping[Any, Any], described: bool) -> dict[str, dict[str, Any]]:
    """Dotted place in a file -> state dict; "" is the top level of the file.

    A state dict is a mapping from names to tensors, without mappings inside; optimizer states, whose keys are numbers,
    are none. A list of tensors that is named as an average (`shadow_params`) is a set whose names are 0, 1, ...; a list
    of state dicts so named is a set for each. With
    `described`, the sets are those that mfdiag writes, with the prefixes `raw.` and `ema.`.
    """
    if described:
        return {key: tensors for key in ("raw", "ema") if (tensors := tensors_below(tree, key))}
    sets = dict(_state_dicts(tree, "", _MAX_DEPTH))
    callbacks = tree.get(_CALLBACKS)
    return sets | (dict(_state_dicts(callbacks, _CALLBACKS, _MAX_DEPTH)) if isinstance(callbacks, Mapping) else {})


def tensors_at(sets: Mapping[str, dict[str, Any]], place: str) -> dict[str, Any] | None:
    """The set of weights at a dotted `place`, or the part of one whose tensor names begin with its last words.

    `model.net_ema` is the set of that place, else the tensors `net_ema.*` of the set `model`. None if it is neither.
    """
    if place in sets:
        return sets[place]
    parts = (tensors_below(tensors, place.removeprefix(f"{key}.") if key else place) for key, tensors in sets.items())
    return next(filter(None, parts), None)


def _state_dicts(tree: Mapping[Any, Any], place: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if not depth or not all(isinstance(name, str) for name in tree):
        return
    if depth <= _DEEP and _OPTIMIZER.search(place):
        return
    inner = {name: value for name, value in tree.items() if isinstance(value, Mapping)}
    tensors = {name: value for name, value in tree.items() if is_tensor(value)}
    if tensors and not inner:
        yield place, tensors
    for name, value in tree.items():
        is_list = isinstance(value, list | tuple) and len(value) > 1 and all(map(is_tensor, value))
        if is_list and _LISTS.search(name):
            yield f"{place}.{name}" if place else name, {str(number): item for number, item in enumerate(value)}
    for name, value in inner.items():
        yield from _state_dicts(value, f"{place}.{name}" if place else name, depth - 1)
    for name, value in tree.items():
        if isinstance(value, list | tuple) and _LISTS.search(name) and all(isinstance(item, Mapping) for item in value):
            for key, item in zip(_names_in_list(tree, value), value, strict=True):
                yield from _state_dicts(item, f"{place}.{name}.{key}" if place else f"{name}.{key}", depth - 1)


def _names_in_list(tree: Mapping[Any, Any], averages: Sequence[Any]) -> list[str]:
    """A name for each of several averages: its width, which EDM2 stores as `stds` beside them, or its number."""
    widths = tree.get("stds")
    if isinstance(widths, list | tuple) and all(isinstance(width, float) for width in widths):
        names = [f"{width:.3f}" for width in widths]
        if len(names) == len(averages) == len(set(names)):
            return names
    return [str(number) for number in range(len(averages))]
