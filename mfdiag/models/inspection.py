"""What is in a checkpoint file, found without running anything in it and without reading its weights."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from mfdiag.errors import InputError
from mfdiag.models.cards.proposal import Proposal, propose
from mfdiag.models.description import METADATA_KEY, Description, parse_description
from mfdiag.models.formats.containers import is_tensor, read_container, scalar, training_step, weight_sets
from mfdiag.models.formats.exported import Program
from mfdiag.storage import sha256_of

__all__ = ["FileEntry", "Inspection", "TensorInfo", "TensorLayout", "WeightSet", "inspect_checkpoint"]

Scalar = bool | int | float | str | None


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


class FileEntry(BaseModel):
    """One top-level entry that is no set of weights; `values` are the scalars in it, under "" if it is one itself."""

    name: str
    type: str
    values: dict[str, Scalar]


class TensorLayout(NamedTuple):
    """The tensors of sets of weights that have the same names and shapes.

    `tensors` has (pattern, shape, count): names that differ in whole numbers alone are one pattern.
    """

    weights: list[str]
    tensors: list[tuple[str, list[int], int]]


class Inspection(BaseModel):
    """What `inspect_checkpoint` found; `notes` say in words what could not be found out.

    `proposal` is a model card for a file that neither describes its network nor holds it.
    """

    path: Path
    container: str
    size_bytes: int
    sha256: str
    weights: list[WeightSet]
    description: Description | None
    entries: list[FileEntry]
    tensors: list[TensorInfo]
    step: int | None
    proposal: Proposal | None
    notes: list[str]

    @property
    def layouts(self) -> list[TensorLayout]:
        """The sets of weights by what tensors they have."""
        names: dict[tuple[Any, ...], list[str]] = {}
        for found in self.weights:
            own = [(info.name, tuple(info.shape)) for info in self.tensors if info.weights == found.key]
            patterns = Counter((re.sub(r"(?<![^.])\d+(?![^.])", "*", name), shape) for name, shape in own)
            names.setdefault(tuple((name, shape, count) for (name, shape), count in patterns.items()), []).append(
                found.key
            )
        return [
            TensorLayout(keys, [(n, list(shape), count) for n, shape, count in found]) for found, keys in names.items()
        ]


def inspect_checkpoint(path: str | os.PathLike[str]) -> Inspection:
    """Read what a checkpoint holds, from headers alone; nothing in it is run and no weight is looked at.

    Raises InputError if the file is missing, empty, damaged, or holds pickled code; a description that is
    wrong becomes a note.
    """
    file = read_container(path, load=False)
    path = file.files[0]
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
    proposal = None
    if description is None and file.program is None:
        told = {f"{e.name}.{key}" if key else e.name: value for e in entries for key, value in e.values.items()}
        proposal = propose(path.name, sets, told)
    notes += _notes(description, file.program, sets, entries)
    return Inspection(
        path=path,
        container=file.kind,
        size_bytes=sum(part.stat().st_size for part in file.files),
        sha256=sha256_of(*file.files),
        weights=[_weight_set(key, [info for info in tensors if info.weights == key]) for key in sets],
        description=description,
        entries=entries,
        tensors=tensors,
        step=description.step if description else training_step(file.tree),
        proposal=proposal,
        notes=notes,
    )


def _tensor(key: str, name: str, value: Any) -> TensorInfo:
    return TensorInfo(weights=key, name=name, shape=list(value.shape), dtype=value.dtype)


def _weight_set(key: str, infos: list[TensorInfo]) -> WeightSet:
    dtypes = Counter(info.dtype for info in infos)
    return WeightSet(key=key, tensors=len(infos), parameters=sum(prod(i.shape) for i in infos), dtypes=dict(dtypes))


def _entry(name: str, value: Any) -> FileEntry:
    if is_tensor(value):
        return FileEntry(name=name, type="Tensor", values={})
    return FileEntry(name=name, type=type(value).__name__, values=dict(_scalars(value)))


def _scalars(value: Any, place: str = "", depth: int = 3) -> Iterator[tuple[str, Scalar]]:
    """The scalars in a value by dotted place: itself, or those in mappings and namespaces of it."""
    if (found := scalar(value)) is not None:
        yield place, found
    elif depth and not is_tensor(value):
        inside = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
        for key, item in inside.items():
            yield from _scalars(item, f"{place}.{key}" if place else str(key), depth - 1)


def _notes(
    description: Description | None, program: Program | None, sets: Mapping[str, Any], entries: list[FileEntry]
) -> list[str]:
    notes = []
    if program is not None:
        taken = ", ".join(
            f"{name} {[n or 'n' for n in shape]}".replace("'", "") for name, shape in program.inputs.items()
        )
        notes.append(f"The network is in the file, a program of {taken}: it needs no --model.")
    elif description is None:
        notes.append("The network is not described in the file: pass --model to measure it.")
    if description is None:
        notes.append("The data set and the sampler of (r, t) are not described in the file: pass --data and --times.")
    if not sets:
        notes.append("No state dict (a mapping from names to tensors) was found.")
    if not any("ema" in key or any("ema" in name.partition(".")[0] for name in found) for key, found in sets.items()):
        notes.append("No set of weights is named as an exponential moving average.")
    if any(entry.type == "Tensor" for entry in entries):
        notes.append("Values of entries that are tensors were not read.")
    return notes
