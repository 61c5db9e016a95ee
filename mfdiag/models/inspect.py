"""What is in a checkpoint file, found without running anything in it and without reading its weights."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mfdiag.errors import InputError
from mfdiag.models.containers import (
    checkpoint_file,
    container_of,
    read_safetensors,
    read_torch,
    scalar,
    weight_sets,
)
from mfdiag.models.description import METADATA_KEY, Description, parse_description
from mfdiag.storage import sha256_of

__all__ = ["Entry", "Inspection", "TensorInfo", "WeightSet", "inspect_checkpoint"]

Scalar = bool | int | float | str | None

_SAFETENSORS_DTYPES = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "BOOL": "bool"}


class TensorInfo(BaseModel):
    """One tensor; `weights` is the key of the set it belongs to."""

    weights: str
    name: str
    shape: list[int]
    dtype: str


class WeightSet(BaseModel):
    """One state dict: `key` as for `--weights` ("" for a bare one, i.e. raw), and how many tensors each dtype has."""

    key: str
    tensors: int
    parameters: int
    dtypes: dict[str, int]


class Entry(BaseModel):
    """One top-level entry that is no set of weights; `values` are the scalars in it, under "" if it is one itself."""

    name: str
    type: str
    values: dict[str, Scalar]


class Inspection(BaseModel):
    """What `inspect_checkpoint` found; `notes` say in words what could not be found out."""

    path: Path
    container: str
    size_bytes: int
    sha256: str
    weights: list[WeightSet]
    description: Description | None
    entries: list[Entry]
    tensors: list[TensorInfo]
    notes: list[str]


def inspect_checkpoint(path: str | os.PathLike[str]) -> Inspection:
    """Read what a checkpoint holds, from headers alone; nothing in it is run and no weight is looked at.

    Raises InputError if the file is missing, empty, damaged, or holds pickled code; a description that is
    wrong becomes a note.
    """
    path = checkpoint_file(path)
    container = container_of(path)
    file = read_safetensors(path, load=False) if container == "safetensors" else read_torch(path, container, load=False)
    notes = []
    description = None
    text = file.metadata.get(METADATA_KEY)
    try:
        description = None if text is None else parse_description(text, path)
    except InputError as error:
        notes.append(str(error))
    sets = weight_sets(file.tree, described=description is not None)
    tensors = [_tensor(key, name, value) for key, found in sets.items() for name, value in found.items()]
    taken = {key.split(".")[0] for key in sets}
    entries = [
        _entry(str(name), value)
        for name, value in file.tree.items()
        if "" not in sets and str(name) not in taken and description is None
    ]
    entries += [_entry(name, value) for name, value in file.metadata.items() if name != METADATA_KEY]
    notes += _notes(description, sets, entries)
    return Inspection(
        path=path,
        container=container,
        size_bytes=path.stat().st_size,
        sha256=sha256_of(path),
        weights=[_weight_set(key, [info for info in tensors if info.weights == key]) for key in sets],
        description=description,
        entries=entries,
        tensors=tensors,
        notes=notes,
    )


def _tensor(key: str, name: str, value: Any) -> TensorInfo:
    if hasattr(value, "get_shape"):
        code = value.get_dtype()
        letters = code.rstrip("0123456789")
        dtype = _SAFETENSORS_DTYPES.get(letters, letters) + code[len(letters) :]
        return TensorInfo(weights=key, name=name, shape=value.get_shape(), dtype=dtype)
    return TensorInfo(weights=key, name=name, shape=list(value.shape), dtype=str(value.dtype).removeprefix("torch."))


def _weight_set(key: str, infos: list[TensorInfo]) -> WeightSet:
    dtypes = Counter(info.dtype for info in infos)
    return WeightSet(key=key, tensors=len(infos), parameters=sum(prod(i.shape) for i in infos), dtypes=dict(dtypes))


def _entry(name: str, value: Any) -> Entry:
    return Entry(name=name, type=type(value).__name__, values=dict(_scalars(value)))


def _scalars(value: Any) -> Iterator[tuple[str, Scalar]]:
    """The scalars in a value: itself, or one level into a mapping or an argparse.Namespace."""
    if (found := scalar(value)) is not None:
        yield "", found
        return
    inside = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
    for key, item in inside.items():
        if (found := scalar(item)) is not None:
            yield str(key), found


def _notes(description: Description | None, sets: Mapping[str, Any], entries: list[Entry]) -> list[str]:
    notes = []
    if description is None:
        notes.append("The network is not described in the file: pass --model to measure it.")
        notes.append("The data set and the sampler of (r, t) are not described in the file: pass --data and --times.")
    if not sets:
        notes.append("No state dict (a mapping from names to tensors) was found.")
    if not any("ema" in key for key in sets):
        notes.append("No set of weights is named as an exponential moving average.")
    if any(entry.type in {"Tensor", "Parameter"} and not entry.values for entry in entries):
        notes.append("Values of entries that are tensors were not read.")
    return notes
