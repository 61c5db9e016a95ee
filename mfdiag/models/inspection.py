"""What is in a checkpoint file. No code in it is run, and its weights are not read."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from mfdiag.errors import InputError, abbreviated
from mfdiag.models.cards.proposal import Proposal, propose
from mfdiag.models.description import METADATA_KEY, Description, parse_description
from mfdiag.models.formats.average_counters import never_updated
from mfdiag.models.formats.containers import Container, is_tensor, read_container, scalar, training_step, weight_sets
from mfdiag.models.formats.weight_names import is_average, place_of, split_copies
from mfdiag.storage import sha256_of

__all__ = ["FileEntry", "Inspection", "TensorInfo", "TensorLayout", "WeightSet", "inspect_checkpoint"]

_MAX_AVERAGES = 12  # that a note lists

Scalar = bool | int | float | str | None


class TensorInfo(BaseModel):
    """One tensor; `weights` is the key of its set."""

    weights: str
    name: str
    shape: list[int]
    dtype: str


class WeightSet(BaseModel):
    """One state dict. `key` is as for `--weights`, "" for a bare state dict; `dtypes` counts the tensors of each."""

    key: str
    tensors: int
    parameters: int
    dtypes: dict[str, int]


class FileEntry(BaseModel):
    """One top-level entry that is no set of weights; `values` are its scalars, under "" if the entry is a scalar."""

    name: str
    type: str
    values: dict[str, Scalar]


class TensorLayout(NamedTuple):
    """The tensors that several sets of weights have in common, because their names and shapes are the same.

    `tensors` lists (pattern, shape, count); names that differ only in whole numbers share a pattern.
    """

    weights: list[str]
    tensors: list[tuple[str, list[int], int]]


class Inspection(BaseModel):
    """What `inspect_checkpoint` reads from a file.

    `proposal` is a model card, for a file that neither describes its network nor contains it. `notes` are sentences
    about what the file lacks.
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
        """The sets of weights, grouped by the names and shapes of their tensors."""
        keys_by_layout: dict[tuple[Any, ...], list[str]] = {}
        infos_by_key = _by_key(self.tensors)
        for weights in self.weights:
            infos = [(info.name, tuple(info.shape)) for info in infos_by_key[weights.key]]
            counts = Counter((re.sub(r"(?<![^.])\d+(?![^.])", "*", name), shape) for name, shape in infos)
            layout = tuple((pattern, shape, count) for (pattern, shape), count in counts.items())
            keys_by_layout.setdefault(layout, []).append(weights.key)
        return [
            TensorLayout(keys, [(pattern, list(shape), count) for pattern, shape, count in layout])
            for layout, keys in keys_by_layout.items()
        ]


def inspect_checkpoint(path: str | os.PathLike[str]) -> Inspection:
    """Read what a checkpoint holds, only from headers. No code in it is run, and no weights are read.

    A wrong description becomes a note. Raises InputError if the file is missing, empty or damaged, or holds pickled
    code.
    """
    file = read_container(path, load=False)
    path = file.path
    notes = list(file.notes)
    description = None
    text = file.metadata.get(METADATA_KEY)
    try:
        description = None if text is None else parse_description(text, path)
    except InputError as error:
        notes.append(str(error))
    sets = weight_sets(file.tree, described=description is not None)
    tensors = [_tensor(key, name, value) for key, weights in sets.items() for name, value in weights.items()]
    weight_entries = {key.split(".")[0] for key in sets}
    entries = [
        _entry(str(name), value)
        for name, value in file.tree.items()
        if "" not in sets and str(name) not in weight_entries and description is None
    ]
    entries += [_entry(name, value) for name, value in file.metadata.items() if name != METADATA_KEY]
    entries += [_entry(name, value) for name, value in file.config.items() if value]
    proposal = None
    if description is None and not (file.program and file.program.has_form_of_u):
        plain_values = {f"{e.name}.{key}" if key else e.name: value for e in entries for key, value in e.values.items()}
        proposal = propose(path.name, sets, plain_values)
    notes += _notes(description, file, sets, entries)
    return Inspection(
        path=path,
        container=file.kind,
        size_bytes=sum(part.stat().st_size for part in file.files),
        sha256=sha256_of(*file.files),
        weights=[_weight_set(key, infos) for key, infos in _by_key(tensors).items()],
        description=description,
        entries=entries,
        tensors=tensors,
        step=description.step if description else training_step(file.tree),
        proposal=proposal,
        notes=notes,
    )


def _by_key(tensors: list[TensorInfo]) -> dict[str, list[TensorInfo]]:
    """The tensors of each set of weights, in the order of the file."""
    infos: dict[str, list[TensorInfo]] = {}
    for info in tensors:
        infos.setdefault(info.weights, []).append(info)
    return infos


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
    """The scalars in a value by their dotted place: the value itself, or those in its mappings and namespaces."""
    if (plain := scalar(value)) is not None:
        yield place, plain
    elif depth and not is_tensor(value):
        content = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
        for key, item in content.items():
            yield from _scalars(item, f"{place}.{key}" if place else str(key), depth - 1)


def _notes(
    description: Description | None, file: Container, sets: Mapping[str, Any], entries: list[FileEntry]
) -> list[str]:
    notes: list[str] = []
    program = file.program
    if program is not None:
        inputs = ", ".join(
            f"{name} {[n or 'n' for n in shape]}".replace("'", "") for name, shape in program.inputs.items()
        )
        need = (
            "no --model is needed if it is u(x, r, t) or u(x, r, t, y)"
            if program.has_form_of_u
            else "that is not u(x, r, t) with a batch of any length, so pass --model to measure its weights"
        )
        notes.append(f"The file contains the network, as a program of {inputs}; {need}.")
    elif description is None:
        notes.append("The file does not describe its network; pass --model to measure it.")
    if description is None:
        notes.append("The file describes neither its data nor how (r, t) are drawn; pass --data and --times.")
    if not sets:
        notes.append("The file has no state dict, which is a mapping from names to tensors.")
    copies = split_copies(sets)
    averaged = [place for place in copies if is_average(place, copies)]
    if not averaged:
        notes.append("No weights in the file have a name for an exponential moving average, such as ema.")
    elif description is None:
        raw, ema = (place_of(copies, key) for key in ("raw", "ema"))
        selected = [
            f"--weights {key} selects {place or 'the bare state dict'}"
            for key, place in (("raw", raw), ("ema", ema))
            if place is not None and place not in (key, "model")
        ]
        notes += [f"By the names in the file, {', and '.join(selected)}."] if selected else []
        if ema is None and len(averaged) > 1:
            notes.append(
                f"The file has {len(averaged)} averages, and no name says which is meant by --weights ema: "
                f"{abbreviated(averaged, _MAX_AVERAGES)}. Pass one of these as --weights."
            )
    if any(entry.type == "Tensor" for entry in entries):
        notes.append("Tensors that are not weights are listed without their values.")
    notes += [
        f"The average {place or 'in the file'} was never updated ({counter}); it holds the initial weights."
        for place, counter in never_updated(averaged, file.tree, file.config).items()
    ]
    return notes
