"""Specifications on the command line: NAME:1,2 or NAME:a=1,b=2."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import isfinite

from mfdiag.errors import InputError

__all__ = ["format_spec", "parse_arguments", "parse_grid"]


def parse_arguments(
    spec: str, parameters: Mapping[str, float | None], integers: Collection[str] = ()
) -> dict[str, float]:
    """Numbers of `NAME:1,2` or `NAME:a=1,b=2` (positions first, then keywords), by parameter name, in order.

    `parameters` gives each name its default, None where the argument must be given; those in `integers` must be
    whole and at least 1, and come back as int. Raises InputError for a wrong count, an unknown or repeated keyword, or
    a value that is no such number.
    """
    name, _, text = spec.partition(":")
    usage = ",".join(key if default is None else f"[{key}={default}]" for key, default in parameters.items())
    expected = f"expected {name}:{usage}" if parameters else f"{name} takes no arguments"
    pieces = [piece.strip() for piece in text.split(",")] if text else []
    positional = [piece for piece in pieces if "=" not in piece]
    if len(pieces) > len(parameters) or pieces[: len(positional)] != positional:
        raise InputError(f"Bad {spec!r}: {expected}.")
    named = [piece.split("=", 1) for piece in pieces[len(positional) :]]
    given: dict[str, float] = {}
    for key, value in [*zip(parameters, positional, strict=False), *named]:
        if key not in parameters or key in given:
            raise InputError(f"Bad {spec!r}: {'repeated' if key in given else 'unknown'} argument {key!r}; {expected}.")
        given[key] = _number(spec, key, value, key in integers)
    values = {key: given.get(key, default) for key, default in parameters.items()}
    missing = [key for key, value in values.items() if value is None]
    if missing:
        raise InputError(f"Bad {spec!r}: no value for {', '.join(missing)}; {expected}.")
    return {key: value for key, value in values.items() if value is not None}


def format_spec(name: str, *values: float) -> str:
    """NAME:1,2.5 from numbers, shortest digits that read back the same; the inverse of `parse_arguments`."""
    return ":".join([name, *([",".join(repr(float(value)).removesuffix(".0") for value in values)] if values else [])])


def _number(spec: str, key: str, text: str, whole: bool) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value) or (whole and (value < 1 or not value.is_integer())):
        kind = "a whole number of at least 1" if whole else "a finite number"
        raise InputError(f"Bad {spec!r}: {key} must be {kind}, got {text!r}.")
    return int(value) if whole else value


def parse_grid(option: str, text: str) -> tuple[float, ...]:
    """Numbers of `start:stop:step`, ends included, or of a comma list; `option` names it in errors.

    Raises InputError for what is no number, a step that does not lead from start to stop, or more than 10,001 values.
    """
    separator = ":" if ":" in text else ","
    pieces = text.split(separator)
    if separator == ":" and len(pieces) != 3:
        raise InputError(f"{option} takes start:stop:step or a comma list, as in 0:1:0.05 or 0,0.5,1; got {text!r}.")
    numbers = [_number(text, option, piece, whole=False) for piece in pieces]
    if separator == ",":
        return tuple(numbers)
    start, stop, step = numbers
    if start == stop:
        return (start,)
    if step == 0 or (stop - start) / step < 0:
        raise InputError(f"{option} {text!r} leads nowhere: from {start:g} to {stop:g} the step cannot be {step:g}.")
    count = round(min((stop - start) / step, 1e15))  # the quotient can overflow to infinity
    if count > 10_000:
        raise InputError(f"{option} {text!r} asks for {count + 1} values; at most 10,001 are measured at once.")
    if count < 1 or abs(start + count * step - stop) > 1e-6 * abs(step):
        raise InputError(f"{option} {text!r}: {step:g} does not divide the way from {start:g} to {stop:g}.")
    return (*(round(start + k * step, 12) for k in range(count)), stop)
