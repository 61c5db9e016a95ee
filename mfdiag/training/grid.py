"""Grids of training runs: a YAML file whose axes expand to cells. Errors name the line and the field."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mfdiag.errors import InputError
from mfdiag.flow.density import DensityTimes
from mfdiag.flow.time_shares import share_note
from mfdiag.storage import expanded
from mfdiag.training.spec import TrainSpec
from mfdiag.yamlfile import field_of, line_of, problem_of, read_yaml

__all__ = ["GridCell", "load_grid"]

_MAX_CELLS = 10_000  # more is a mistake: such a grid would train for months


@dataclass(frozen=True)
class GridCell:
    """One run of a grid: its name, which is also its folder ("" for a grid without axes), and its specification.

    `notes` are sentences about how the file was read.
    """

    name: str
    spec: TrainSpec
    notes: tuple[str, ...] = ()


def load_grid(path: str | os.PathLike[str]) -> list[GridCell]:
    """Load the cells of a YAML file with the fields of `TrainSpec`, and `axes`, which maps fields to lists of values.

    A field inside a section is written with a dot, as in `loss.beta: [0, 0.5, 1]`. Fields that change together share an
    axis, as in `data, model.arguments.dim: [["mixture:2,8", 2], ["mixture:4,8", 4]]`. Cells are the product of the
    axes; the last axis changes fastest. A path in `times: density:FILE` is relative to the YAML file.

    Raises:
        InputError: The file cannot be read or is not valid; the text names file, line, field and what is allowed.
    """
    path = Path(path)
    root, values = read_yaml(path, "a training specification", TrainSpec)
    axes = values.pop("axes", {})
    if not isinstance(axes, dict):
        raise InputError(
            f"{path}, line {line_of(root, ('axes',))}, axes: expected a mapping from fields to lists of values."
        )
    for field, choices in axes.items():
        where = f"{path}, line {line_of(root, ('axes', field))}, axes.{field}"
        if not isinstance(choices, list) or not choices:
            raise InputError(f"{where}: expected a list of values, such as [0, 0.5, 1], but got {choices!r}.")
        width = len(_fields(field))
        if width > 1 and not all(isinstance(choice, list) and len(choice) == width for choice in choices):
            raise InputError(
                f"{where}: expected a list of lists of {width} values, one value for each field of the axis."
            )
        if len({repr(choice) for choice in choices}) < len(choices):
            raise InputError(f"{where}: a value appears twice; remove one.")
    count = 1
    for choices in axes.values():
        count *= len(choices)
    if count > _MAX_CELLS:
        raise InputError(
            f"{path}: expected at most {_MAX_CELLS:,} cells, but the axes make {count:,}; use fewer values."
        )
    cells = []
    for choices in itertools.product(*axes.values()):
        point = _point(axes, choices)
        merged = values
        for field, value in point.items():
            merged = _with(merged, field.split("."), value)
        merged = _resolve_density(path, merged)
        try:
            spec = TrainSpec.model_validate(merged)
        except ValidationError as error:
            raise InputError(_message(path, root, error, axes)) from error
        note = share_note(merged["times"])
        cells.append(GridCell(_name(point), spec, () if note is None else (note,)))
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: two cells would both be called {repeated!r}; use values with different names.")
    return cells


def _fields(axis: str) -> list[str]:
    """The fields of an axis: one, or several that change together, separated by commas."""
    return [field.strip() for field in axis.split(",")]


def _point(axes: Mapping[str, Any], choices: tuple[Any, ...]) -> dict[str, Any]:
    """The value of each field that is on an axis, from one choice for each axis."""
    point: dict[str, Any] = {}
    for axis, choice in zip(axes, choices, strict=True):
        fields = _fields(axis)
        point |= dict(zip(fields, choice, strict=True)) if len(fields) > 1 else {fields[0]: choice}
    return point


def _resolve_density(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """`values` with the file of a density of (r, t) relative to the working directory instead of to the YAML file."""
    kind, _, file = str(values.get("times", "")).partition(":")
    if kind != DensityTimes.kind or not file:
        return values
    return values | {"times": f"density:{path.parent / expanded(file)}"}


def _with(values: Any, place: list[str], value: Any) -> dict[str, Any]:
    """A copy of the mapping `values` with `value` at `place`; missing sections are created."""
    copied = dict(values) if isinstance(values, Mapping) else {}
    first, *rest = place
    return copied | {first: _with(copied.get(first), rest, value) if rest else value}


def _name(point: Mapping[str, Any]) -> str:
    """Name of a cell: its axis values, each with the last part of its field's name."""
    return ",".join(f"{field.rpartition('.')[2]}={_word(value)}" for field, value in point.items())


def _word(value: Any) -> str:
    """A value as part of a file name; a mapping becomes its values."""
    if isinstance(value, Mapping):
        return "-".join(map(_word, value.values()))
    text = Path(value).stem if isinstance(value, str) and "/" in value else str(value)
    return re.sub(r"[^\w.+-]+", "_", text)


def _message(path: Path, root: yaml.Node, error: ValidationError, axes: Mapping[str, Any]) -> str:
    loc, problem = problem_of(error, TrainSpec, extra_fields=["axes"])
    more = f" (first of {error.error_count()} errors)" if error.error_count() > 1 else ""
    field = field_of(loc)
    on_axis = next(
        (axis for axis in axes for name in _fields(axis) if field == name or field.startswith(f"{name}.")), None
    )
    place = ("axes", on_axis) if on_axis else loc
    return f"{path}, line {line_of(root, place)}, {'axes.' if on_axis else ''}{field}{more}: {problem}"
