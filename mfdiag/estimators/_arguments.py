"""Estimators with numbers after their name, as in NAME:1,2 or NAME:a=1."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from mfdiag.errors import InputError
from mfdiag.estimators._base import Estimator
from mfdiag.flow.specs import format_spec, parse_arguments

__all__ = ["require", "with_arguments"]


def with_arguments(
    name: str, defaults: Mapping[str, float], make: Callable[..., Estimator], integers: Collection[str] = ()
) -> Estimator:
    """The estimator at its defaults, whose `parse` makes others; `make` takes the name and the numbers by keyword.

    Names leave out trailing arguments at their defaults, so that equal estimators have equal names.
    """

    def parse(text: str) -> Estimator:
        values = parse_arguments(f"{name}:{text}" if text else name, defaults, integers)
        given = list(values.items())
        while given and given[-1][1] == defaults[given[-1][0]]:
            given.pop()
        return make(format_spec(name, *(value for _, value in given)), **values)

    return replace(parse(""), parse=parse)


def require(holds: bool, name: str, problem: str) -> None:
    """Raises InputError about an argument of the estimator `name` unless it holds."""
    if not holds:
        raise InputError(f"Bad estimator {name!r}: {problem}.")
