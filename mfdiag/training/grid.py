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
from pydantic import BaseModel, ValidationError

from mfdiag.errors import InputError, did_you_mean
from mfdiag.models.description import Architecture
from mfdiag.training.spec import Anchor, Loss, Optimizer, Schedule, TrainSpec

__all__ = ["Cell", "load_grid"]

_MAX_CELLS = 10_000
_SECTIONS: dict[tuple[int | str, ...], type[BaseModel]] = {
    (): TrainSpec,
    ("model",): Architecture,
    ("loss",): Loss,
    ("loss", "anchor"): Anchor,
    ("optimizer",): Optimizer,
    ("schedule",): Schedule,
}


@dataclass(frozen=True)
class Cell:
    """One run of a grid: its name, which is its folder ("" for a grid of one), and its specification."""

    name: str
    spec: TrainSpec


def load_grid(path: str | os.PathLike[str]) -> list[Cell]:
    """The runs in a YAML file: the fields of `TrainSpec`, and `axes`, which maps fields to lists of values.

    A field inside a section is written with a dot, as in `loss.beta: [0, 0.5, 1]`; fields that change together share an
    axis, as in `data, model.arguments.dim: [["mixture:2,8", 2], ["mixture:4,8", 4]]`. Cells are the product of the
    axes, the last axis fastest. Raises InputError naming file, line, field, and what is allowed there.
    """
    path = Path(path)
    root, values = _read(path)
    axes = values.pop("axes", {})
    if not isinstance(axes, dict):
        raise InputError(f"{path}, line {_line(root, ('axes',))}, axes: expected a mapping of fields to lists.")
    for field, choices in axes.items():
        where = f"{path}, line {_line(root, ('axes', field))}, axes.{field}"
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


def _read(path: Path) -> tuple[yaml.Node | None, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except OSError as error:
        raise InputError(
            f"Expected a training specification at {path}, but {error.strerror}; check the path."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it is no text"
        raise InputError(f"{path}{line}: expected YAML, but {problem}; correct the file.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of {', '.join(TrainSpec.model_fields)}; see sweeps/bundled.yaml.")
    return root, values


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


def _message(path: Path, root: yaml.Node | None, error: ValidationError, axes: Mapping[str, Any]) -> str:
    first, *others = error.errors(include_url=False)
    more = f" (and {len(others)} more)" if others else ""
    field = ".".join(map(str, first["loc"]))
    on_axis = next(
        (axis for axis in axes for name in _fields(axis) if field == name or field.startswith(f"{name}.")), None
    )
    place = ("axes", on_axis) if on_axis else first["loc"]
    return f"{path}, line {_line(root, place)}, {'axes.' if on_axis else ''}{field}{more}: {_problem(first)}"


def _problem(error: Any) -> str:
    *section, name = error["loc"]
    model = _SECTIONS.get(tuple(section), TrainSpec)
    known = [field.alias or key for key, field in model.model_fields.items()]
    if model is TrainSpec:
        known.append("axes")
    if error["type"] == "extra_forbidden":
        return str(did_you_mean("field", str(name), known))
    if error["type"] == "missing":
        return f"this field is missing; add it, the fields are {', '.join(known)}."
    given = "" if isinstance(error["input"], dict) else f", but got {error['input']!r}"
    return (
        error["msg"].removeprefix("Value error, ").removesuffix(".").replace("Input should", "It should") + given + "."
    )


def _line(node: yaml.Node | None, place: tuple[int | str, ...]) -> int:
    """The line, from 1, of the field at `place`, or of the nearest section around it."""
    line = node.start_mark.line if node else 0
    for name in place:
        found = [pair for pair in node.value if pair[0].value == name] if isinstance(node, yaml.MappingNode) else []
        if not found:
            break
        line, node = found[-1][0].start_mark.line, found[-1][1]
    return line + 1
