"""YAML files the user writes, checked by a pydantic model: errors name file, line, field and what is allowed there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from mfdiag.errors import InputError, did_you_mean

__all__ = ["field_of", "line_of", "problem_of", "read_yaml", "sections_of"]

Place = Sequence[int | str]


def read_yaml(path: Path, what: str, model: type[BaseModel]) -> tuple[yaml.Node, dict[str, Any]]:
    """The file's nodes, which know their lines, and its values. `what` the file should be, and `model`, name it.

    Raises InputError for a file that cannot be read, is no YAML, or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"Expected {what} at {path}, but {error.strerror}; check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it is no text"
        raise InputError(f"{path}{line}: expected YAML, but {problem}; correct the file.") from error
    if not isinstance(values, dict) or root is None:
        raise InputError(f"{path}: expected a mapping of {', '.join(_fields(model))}, as {what} is.")
    return root, values


def line_of(node: yaml.Node, place: Place) -> int:
    """The line, from 1, of the entry at `place`, or of the nearest section around it."""
    line = node.start_mark.line
    for name in place:
        found: list[tuple[yaml.Node, yaml.Node]] = []
        if isinstance(node, yaml.MappingNode):
            found = [pair for pair in node.value if pair[0].value == str(name)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(name, int) and name < len(node.value):
            found = [(node.value[name], node.value[name])]
        if not found:
            break
        line, node = found[-1][0].start_mark.line, found[-1][1]
    return line + 1


def field_of(place: Place) -> str:
    """`place` as one writes it."""
    return ".".join(map(str, place)) or "the file"


def problem_of(error: ValidationError, model: type[BaseModel], more: Iterable[str] = ()) -> tuple[tuple[Any, ...], str]:
    """Place of the first error of validating `model`, and what is wrong there; `more` are further top-level fields."""
    first = error.errors(include_url=False)[0]
    place = first["loc"]
    section = _section(model, place[:-1])
    known = [*_fields(section), *(more if section is model else ())]
    if first["type"] == "extra_forbidden":
        return place, str(did_you_mean("field", str(place[-1]), known))
    if first["type"] == "missing":
        return place, f"this field is missing; add it, the fields are {', '.join(known)}."
    input_ = first["input"]
    told = isinstance(input_, Mapping | BaseModel) or (isinstance(input_, str) and repr(input_) in first["msg"])
    given = "" if told else f", but got {input_!r}"
    text = first["msg"].removeprefix("Value error, ").removesuffix(".").replace("Input should", "It should")
    return place, f"{text}{given}."


def _fields(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field with this annotation may hold."""
    kinds = [annotation, *get_args(annotation)]
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _section(model: type[BaseModel], place: Place) -> type[BaseModel]:
    """The model of the section at `place`; the outermost one where it is no section."""
    found = model
    for name in place:
        field = next((f for key, f in found.model_fields.items() if (f.alias or key) == name), None)
        inner = sections_of(field.annotation) if field is not None else []
        if not inner:
            return model
        found = inner[0]
    return found
