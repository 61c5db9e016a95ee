"""Rules by which a shipped model card recognizes a file: the names and shapes of its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from fnmatch import translate
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mfdiag.models.formats.pickles import TensorHeader

__all__ = ["Recognise", "Similar", "size_in"]

_NAME = r"[\w.*?-]+"
_TERM = re.compile(rf"(?:count\(({_NAME})\)|sqrt\(({_NAME})\[(\d)\]\)|({_NAME})\[(\d)\]|(\d+))")
_PLACE = re.compile(r"\{([\w.]+)\}")
_FORMULA = re.compile(rf"\s*{_TERM.pattern}\s*(?:[-+*/]\s*{_TERM.pattern}\s*)*")


def _formula(text: str) -> str:
    if not _FORMULA.fullmatch(text):
        raise ValueError(f"expected a formula such as 'NAME[0] - 1' or 'count(PATTERN)', got {text!r}")
    return text


Formula = Annotated[str, AfterValidator(_formula)]


class Similar(BaseModel):
    """Another repository, without a shipped card, whose files hold tensors of the same names and shapes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    differs: str = Field(description="how its conventions differ, as fields of a card")
    entries: list[str] = Field(
        default_factory=list,
        description="dotted places that only files of that repository have; a file with all of them is not of the card",
    )


class Recognise(BaseModel):
    """How `mfdiag inspect` recognizes a file of the card's repository.

    Patterns are shell wildcards for names of tensors, without the prefixes of `weights`. A size is a formula of
    `NAME[axis]` (the length of an axis of a tensor), `sqrt(NAME[axis])`, `count(PATTERN)` (the number of tensors that
    match) and whole numbers. Its operators + - * / are applied from left to right.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensors: list[str] = Field(min_length=1, description="patterns that must each match a tensor")
    without: list[str] = Field(default_factory=list, description="patterns that must match no tensor")
    entries: list[str] = Field(default_factory=list, description="names that the file must have at its top level")
    sizes: dict[str, Formula | list[Formula]] = Field(
        default_factory=dict, description="dotted field of the card: formula of its value, or a list of formulas"
    )
    untold: list[str] = Field(
        default_factory=list,
        description="fields of `network.arguments` that may differ with the sizes and that no file records",
    )
    texts: dict[str, str | dict[str, str]] = Field(
        default_factory=dict,
        description="dotted field of the card: text of its value, in which {place} stands for the plain value at a "
        "dotted place of the file, as in logit_normal:{args.mu},{args.sigma}; or a mapping from a case place=value to "
        "its text",
    )
    choices: dict[str, dict[str, dict[Formula, int]]] = Field(
        default_factory=dict, description="dotted field of the card: {value: {formula: size}} for each possible value"
    )

    similar: dict[str, Similar] = Field(
        default_factory=dict, description="other repositories whose files have the same tensors, and what differs"
    )

    def fits(self, tensors: Mapping[str, TensorHeader], entries: Collection[str]) -> bool:
        """Whether a set of weights, and the names at the file's top level, are those of the card's repository."""
        return (
            all(_matching(tensors, pattern) for pattern in self.tensors)
            and not any(_matching(tensors, pattern) for pattern in self.without)
            and all(entry in entries for entry in self.entries)
        )

    def values_in(self, tensors: Mapping[str, TensorHeader], plain_values: Mapping[str, Any]) -> dict[str, Any]:
        """Dotted field of the card -> its value in a file, for the fields that the file determines.

        `plain_values` are the plain values in the file by their dotted place. A field of `choices` is None if the sizes
        in the file are those of none of its values.
        """
        values: dict[str, Any] = {}
        for field, choices in self.choices.items():
            fitting = (
                value
                for value, sizes in choices.items()
                if all(size_in(tensors, formula) == size for formula, size in sizes.items())
            )
            values[field] = next(fitting, None)
        for field, formula in self.sizes.items():
            sizes = [size_in(tensors, text) for text in ([formula] if isinstance(formula, str) else formula)]
            if None not in sizes:
                values[field] = sizes[0] if isinstance(formula, str) else sizes
        for field, cases in self.texts.items():
            text = cases if isinstance(cases, str) else _matching_case(cases, plain_values)
            if text is not None and all(place in plain_values for place in _PLACE.findall(text)):
                values[field] = _PLACE.sub(lambda match: _as_text(plain_values[match.group(1)]), text)
        return values


def _matching_case(cases: Mapping[str, str], plain_values: Mapping[str, Any]) -> str | None:
    present = {f"{place}={value}" for place, value in plain_values.items()}
    return next((text for case, text in cases.items() if case in present), None)


def _as_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def size_in(tensors: Mapping[str, TensorHeader], formula: str) -> int | None:
    """The value of a formula of sizes (see `Recognise`); None if it names a tensor or axis that does not exist."""
    operators = re.sub(_TERM, " ", formula).split()
    value = None
    for index, match in enumerate(_TERM.finditer(formula)):
        term = _term(tensors, *match.groups())
        if term is None:
            return None
        if value is None:
            value = term
            continue
        match operators[index - 1]:
            case "+":
                value += term
            case "-":
                value -= term
            case "*":
                value *= term
            case "/":
                value //= max(term, 1)
    return value


def _term(tensors: Mapping[str, TensorHeader], *groups: str | None) -> int | None:
    """The value of a term, from the groups of `_TERM`."""
    counted, rooted, root_axis, name, axis, number = groups
    if number is not None:
        return int(number)
    if counted is not None:
        return len(_matching(tensors, counted))
    matching = _matching(tensors, rooted or name or "")
    shape = tensors[matching[0]].shape if matching else ()
    index = int(root_axis or axis or 0)
    if index >= len(shape):
        return None
    length = shape[index]
    return math.isqrt(length) if rooted else length


def _matching(tensors: Mapping[str, TensorHeader], pattern: str) -> list[str]:
    if not re.search(r"[*?\[]", pattern):
        return [pattern] if pattern in tensors else []
    matches = re.compile(translate(pattern)).match
    return [name for name in tensors if matches(name)]
