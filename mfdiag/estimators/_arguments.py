"""Estimators with numbers after their name, as in NAME:1,2 or NAME:a=1."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from mfdiag.errors import InputError
from mfdiag.estimators._base import Estimator
from mfdiag.flow.specs import format_spec, parse_arguments

__all__ = ["require", "with_arguments"]


def with_arguments(
    name: str, defaults: Mapping[str, float], build: Callable[..., Estimator], integers: Collection[str] = ()
) -> Estimator:
    """An estimator at its default arguments, whose `parse` makes it at others.

    Arguments at their defaults are left out at the end of a name, so that equal estimators have equal names.

    Args:
        name: Name without arguments.
        defaults: Default of each argument, in order.
        build: Makes the estimator from its full name (first) and its arguments (by keyword).
        integers: Arguments that must be whole numbers of at least 1.

    Returns:
        The estimator at `defaults`.

    Raises:
        InputError: From `parse`, if an argument is unknown, repeated or no number, or `build` rejects it.
    """

    def parse(text: str) -> Estimator:
        arguments = parse_arguments(f"{name}:{text}" if text else name, defaults, integers)
        written = list(arguments.items())
        while written and written[-1][1] == defaults[written[-1][0]]:
            written.pop()
        return build(format_spec(name, *(value for _, value in written)), **arguments)

    return replace(parse(""), parse=parse)


def require(condition: bool, name: str, requirement: str) -> None:
    """Check an argument of an estimator.

    Args:
        condition: Whether the argument is allowed.
        name: Name of the estimator with its arguments, as the error shows it.
        requirement: What is allowed, as in "alpha must be above 0".

    Raises:
        InputError: The condition is false.
    """
    if not condition:
        raise InputError(f"Bad estimator {name!r}: {requirement}.")
