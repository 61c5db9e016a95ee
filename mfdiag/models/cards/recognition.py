"""Which of the shipped model cards fits a file, by the names and shapes of its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from fnmatch import translate
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mfdiag.models.formats.pickles import Header

__all__ = ["Recognise", "size_in"]

_NAME = r"[\w.*?-]+"
_TERM = re.compile(rf"(?:count\(({_NAME})\)|sqrt\(({_NAME})\[(\d)\]\)|({_NAME})\[(\d)\]|(\d+))")
_PLACE = re.compile(r"\{([\w.]+)\}")
_FORMULA = re.compile(rf"\s*{_TERM.pattern}\s*(?:[-+*/]\s*{_TERM.pattern}\s*)*")


def _formula(text: str) -> str:
    if not _FORMULA.fullmatch(text):
        raise ValueError(f"expected a formula such as 'NAME[0] - 1' or 'count(PATTERN)', got {text!r}")
    return text


Formula = Annotated[str, AfterValidator(_formula)]


class Recognise(BaseModel):
    """How a file of the card's kind is told from others.

    Patterns are shell wildcards for names of tensors, without the prefixes of `weights`. A size is a formula of
    `NAME[axis]`, the length of a tensor's axis, `sqrt(NAME[axis])`, `count(PATTERN)`, how many tensors match, and whole
    numbers, joined by + - * / from left to right.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensors: list[str] = Field(min_length=1, description="patterns, each of which some tensor's name matches")
    without: list[str] = Field(default_factory=list, description="patterns that no tensor's name matches")
    entries: list[str] = Field(default_factory=list, description="what the file has at its top level")
    sizes: dict[str, Formula | list[Formula]] = Field(
        default_factory=dict, description="dotted field of the card: its value in the file, as a formula or some"
    )
    untold: list[str] = Field(
        default_factory=list, description="fields of `network.arguments` that other sizes may change and no file tells"
    )
    texts: dict[str, str | dict[str, str]] = Field(
        default_factory=dict,
        description="dotted field of the card: its value in the file, as a text with {place} for plain values at "
        "dotted places of the file, such as logit_normal:{args.mu},{args.sigma}; or one for each case place=value",
    )
    choices: dict[str, dict[str, dict[Formula, int]]] = Field(
        default_factory=dict, description="dotted field of the card: {value: {formula: size}} of networks that have it"
    )

    def fits(self, tensors: Mapping[str, Header], entries: Collection[str]) -> bool:
        """Whether the tensors of a set of weights, and the file's entries, are of the card's kind."""
        return (
            all(_matching(tensors, pattern) for pattern in self.tensors)
            and not any(_matching(tensors, pattern) for pattern in self.without)
            and all(entry in entries for entry in self.entries)
        )

    def found(self, tensors: Mapping[str, Header], told: Mapping[str, Any]) -> dict[str, Any]:
        """Dotted field of the card -> its value by the file, where the file tells it; `told` by dotted place.

        A choice is None where none of its values has the file's sizes.
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
            text = cases if isinstance(cases, str) else _case(cases, told)
            if text is not None and all(place in told for place in _PLACE.findall(text)):
                values[field] = _PLACE.sub(lambda found: _plain(told[found.group(1)]), text)
        return values


def _case(cases: Mapping[str, str], told: Mapping[str, Any]) -> str | None:
    return next((text for case, text in cases.items() if case in {f"{p}={value}" for p, value in told.items()}), None)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def size_in(tensors: Mapping[str, Header], formula: str) -> int | None:
    """The value of a formula of sizes (see `Recognise`); None where a tensor or axis it names is not there."""
    operators = re.sub(_TERM, " ", formula).split()
    value = None
    for index, found in enumerate(_TERM.finditer(formula)):
        term = _term(tensors, *found.groups())
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


def _term(tensors: Mapping[str, Header], *groups: str | None) -> int | None:
    counted, rooted, root_axis, name, axis, number = groups
    if number is not None:
        return int(number)
    if counted is not None:
        return len(_matching(tensors, counted))
    matching = _matching(tensors, rooted or name or "")
    place = int(root_axis or axis or 0)
    if not matching or place >= len(tensors[matching[0]].shape):
        return None
    length = tensors[matching[0]].shape[place]
    return math.isqrt(length) if rooted else length


def _matching(tensors: Mapping[str, Header], pattern: str) -> list[str]:
    if not re.search(r"[*?\[]", pattern):
        return [pattern] if pattern in tensors else []
    matches = re.compile(translate(pattern)).match
    return [name for name in tensors if matches(name)]
