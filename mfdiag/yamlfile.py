"""YAML files that the user writes, validated by a pydantic model. Errors report file, line and field."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from mfdiag.errors import InputError, did_you_mean, plain_validation
from mfdiag.storage import read_text

__all__ = ["field_of", "line_of", "problem_of", "read_yaml", "sections_of"]

_MOST_BYTES = 2**18
_MOST_DEPTH = 40  # of entries within entries
_MOST_NODES = 50_000
_MOST_DIGITS = 60  # of a number

FieldPath = Sequence[int | str]
"""Keys and list indices that lead from the root to a field, such as ("cells", 0, "drawn")."""


def read_yaml(path: Path, description: str, model: type[BaseModel]) -> tuple[yaml.Node, dict[str, Any]]:
    """Reads a YAML mapping without validating it.

    Args:
        path: The file.
        description: What the file should be, for error messages.
        model: The pydantic model of the mapping, for error messages.

    Returns:
        The root node, which knows the line of each entry, and the values.

    Raises:
        InputError: The file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        loader = _Loader(read_text(path, _MOST_BYTES))
        root = loader.get_single_node()
        values = None if root is None else loader.construct_document(root)
    except OSError as error:
        raise InputError(
            f"Expected {description} at {path}, but cannot read it ({error.strerror or error}). Check the path."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it is not text"
        raise InputError(f"{path}{line}: expected YAML, but {problem}. Correct the file.") from error
    if not isinstance(values, dict) or root is None:
        raise InputError(f"{path}: expected a mapping with the fields of {description}: {', '.join(_fields(model))}.")
    return root, values


class _Loader(yaml.SafeLoader):
    """YAML of plain values, with limits on depth, on what aliases expand to, and on the digits of numbers."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}  # of composed nodes, with their aliases written out

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """One node. Raises YAMLError where nodes are nested too deeply or aliases expand to too many."""
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise _error(f"entries are nested more than {_MOST_DEPTH} deep", self.peek_event().start_mark)
        is_alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if is_alias and id(node) not in self._sizes:
            raise _error("an alias stands within what it refers to", mark)
        if not is_alias:
            self._sizes[id(node)] = 1 + sum(self._sizes[id(child)] for child in _children(node))
        if self._sizes[id(node)] > _MOST_NODES:
            raise _error(f"there are more than {_MOST_NODES:,} entries, with aliases written out", mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node. Raises YAMLError for text that its tag does not allow, and for huge numbers."""
        kind = node.tag.rpartition(":")[2]
        if kind in ("int", "float", "timestamp") and len(node.value) > _MOST_DIGITS:
            raise _error(f"a number has more than {_MOST_DIGITS} digits", node.start_mark)
        try:
            value = super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError, OverflowError, TypeError) as error:
            raise _error(f"{_short(node)} is no {kind}", node.start_mark) from error
        if isinstance(value, int) and abs(value) >= 2**63:
            raise _error(f"{_short(node)} is too large for a whole number", node.start_mark)
        return value


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for entry in node.value for child in entry]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _short(node: yaml.Node) -> str:
    text = str(node.value)
    return repr(text if len(text) <= _MOST_DIGITS else f"{text[:_MOST_DIGITS]}...")


def _error(problem: str, mark: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def line_of(root: yaml.Node, field_path: FieldPath) -> int:
    """The line, counted from 1, of the entry at `field_path`, or of the innermost section on the way that exists."""
    node, line = root, root.start_mark.line
    for key in field_path:
        entries: list[tuple[yaml.Node, yaml.Node]] = []
        if isinstance(node, yaml.MappingNode):
            entries = [entry for entry in node.value if entry[0].value == str(key)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            entries = [(node.value[key], node.value[key])]
        if not entries:
            break
        line, node = entries[-1][0].start_mark.line, entries[-1][1]
    return line + 1


def field_of(field_path: FieldPath) -> str:
    """`field_path` in dotted notation, such as `cells.0.drawn`."""
    return ".".join(map(str, field_path)) or "the file"


def problem_of(
    error: ValidationError, model: type[BaseModel], extra_fields: Iterable[str] = ()
) -> tuple[tuple[Any, ...], str]:
    """Where the first validation error lies, and what is wrong there; an unknown field comes before all others.

    Args:
        error: What validating `model` raised.
        model: The pydantic model of the whole file.
        extra_fields: Further top-level fields that the caller accepts beside those of `model`.

    Returns:
        The field path and a sentence.
    """
    errors = error.errors(include_url=False)
    # a misspelled field is unknown and also missing under its right name: the former says more
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    field_path = first["loc"]
    section = _section(model, field_path[:-1])
    known = [*_fields(section), *(extra_fields if section is model else ())]
    if first["type"] == "extra_forbidden":
        return field_path, str(did_you_mean("field", str(field_path[-1]), known))
    if first["type"] == "missing":
        return field_path, f"this field is required, but it is missing. The fields are {', '.join(known)}."
    value = first["input"]
    text = plain_validation(first["msg"])
    shows_value = isinstance(value, Mapping | BaseModel) or (isinstance(value, str) and repr(value) in text)
    unknown_name = " Known: " in text  # from `did_you_mean`, which shows the name itself
    return field_path, f"{text}." if shows_value or unknown_name else f"{text}, but got {value!r}."


def _fields(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that a field with this annotation may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in sections_of(argument)]


def _section(model: type[BaseModel], field_path: FieldPath) -> type[BaseModel]:
    """The model of the section at `field_path`, or `model` itself if there is no section."""
    section = model
    for key in field_path:
        if isinstance(key, int):  # a place in a list of sections
            continue
        field = next((f for name, f in section.model_fields.items() if (f.alias or name) == key), None)
        inner = sections_of(field.annotation) if field is not None else []
        if not inner:
            return model
        section = inner[0]
    return section
