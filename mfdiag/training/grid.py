"""Grids of training runs: YAML files whose axes expand to cells, with errors that name line and field."""

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
from mfdiag.training.spec import TrainSpec
from mfdiag.yamlfile import field_of, line_of, problem_of, read_yaml

__all__ = ["Cell", "load_grid"]

_MAX_CELLS = 10_000


@dataclass(frozen=True)
class Cell:
    """One run of a grid: its name, which is its folder ("" for a grid of one), and its specification."""

    name: str
    spec: TrainSpec


def load_grid(path: str | os.PathLike[str]) -> list[Cell]:
    """The runs in a YAML file: the fields of `TrainSpec`, and `axes`, which maps fields to lists of values.

    A field inside a section is written with a dot, as in `loss.beta: [0, 0.5, 1]`; fields that change together share an
    axis, as in `data, model.arguments.dim: [["mixture:2,8", 2], ["mixture:4,8", 4]]`. Cells are the product of the
    axes, the last axis fastest. The file in `times: density:FILE` lies relative to the specification. Raises InputError
    naming file, line, field, and what is allowed there.
    """
    path = Path(path)
    root, values = read_yaml(path, "a training specification", TrainSpec)
    axes = values.pop("axes", {})
    if not isinstance(axes, dict):
        raise InputError(f"{path}, line {line_of(root, ('axes',))}, axes: expected a mapping of fields to lists.")
    for field, choices in axes.items():
        where = f"{path}, line {line_of(root, ('axes', field))}, axes.{field}"
        if not isinstance(choices, list) or not choices:
            raise InputError(f"{where}: expected a list of values, such as [0, 0.5, 1], but got {choices!r}.")
        width = len(_fields(field))
        if width > 1 and not all(isinstance(choice, list) and len(choice) == width for choice in choices):
            raise InputError(f"{where}: expected a list of lists of {width} values, one for each field named.")
        if len({repr(choice) for choice in choices}) < len(choices):
            raise InputError(f"{where}: a value is there twice; leave each once.")
    count = 1
    for choices in axes.values():
        count *= len(choices)
    if count > _MAX_CELLS:
        raise InputError(f"{path}: the axes make {count:,} cells, more than {_MAX_CELLS:,}; take fewer values.")
    cells = []
    for chosen in itertools.product(*axes.values()):
        point = _point(axes, chosen)
        merged = values
        for field, value in point.items():
            merged = _with(merged, field.split("."), value)
        merged = _beside(path, merged)
        try:
            spec = TrainSpec.model_validate(merged)
        except ValidationError as error:
            raise InputError(_message(path, root, error, axes)) from error
        cells.append(Cell(_name(point), spec))
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: two cells would both be called {twice!r}; give the axes values with other names.")
    return cells


def _fields(axis: str) -> list[str]:
    """The fields an axis sets: one, or several that change together, separated by commas."""
    return [field.strip() for field in axis.split(",")]


def _point(axes: Mapping[str, Any], chosen: tuple[Any, ...]) -> dict[str, Any]:
    """The value of each field on an axis, at one choice from each axis."""
    point: dict[str, Any] = {}
    for axis, choice in zip(axes, chosen, strict=True):
        fields = _fields(axis)
        point |= dict(zip(fields, choice, strict=True)) if len(fields) > 1 else {fields[0]: choice}
    return point


def _beside(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """`values` with the file of a density of (r, t), named relative to the specification, as found from here."""
    kind, _, place = str(values.get("times", "")).partition(":")
    if kind != DensityTimes.kind or not place:
        return values
    return values | {"times": f"density:{path.parent / Path(place).expanduser()}"}


def _with(values: Any, place: list[str], value: Any) -> dict[str, Any]:
    """A copy of the mapping `values` with `value` at `place`; sections that are not there are made."""
    own = dict(values) if isinstance(values, Mapping) else {}
    first, *rest = place
    return own | {first: _with(own.get(first), rest, value) if rest else value}


def _name(point: Mapping[str, Any]) -> str:
    """Folder of a cell: its axis values, each under the last part of its field's name."""
    return ",".join(f"{field.rpartition('.')[2]}={_word(value)}" for field, value in point.items())


def _word(value: Any) -> str:
    """A value as part of a file name: a mapping by its values."""
    if isinstance(value, Mapping):
        return "-".join(map(_word, value.values()))
    text = Path(value).stem if isinstance(value, str) and "/" in value else str(value)
    return re.sub(r"[^\w.+-]+", "_", text)


def _message(path: Path, root: yaml.Node, error: ValidationError, axes: Mapping[str, Any]) -> str:
    loc, problem = problem_of(error, TrainSpec, extra_fields=["axes"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    field = field_of(loc)
    on_axis = next(
        (axis for axis in axes for name in _fields(axis) if field == name or field.startswith(f"{name}.")), None
    )
    place = ("axes", on_axis) if on_axis else loc
    return f"{path}, line {line_of(root, place)}, {'axes.' if on_axis else ''}{field}{more}: {problem}"
