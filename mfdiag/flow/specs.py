"""Specifications on the command line: NAME:1,2 or NAME:a=1,b=2, and grids of numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import isfinite

from mfdiag.errors import InputError

__all__ = ["format_spec", "parse_arguments", "parse_grid"]

_MAX_STEPS = 10_000  # more grid points than anyone plots; a longer grid is a typo in the step
_OVERFLOW_GUARD = 1e15  # the number of steps can overflow to infinity; anything this large is refused below
_END_TOLERANCE = 1e-6  # in steps: how far rounding may put the last grid point from `stop`


def parse_arguments(
    spec: str, parameters: Mapping[str, float | None], integers: Collection[str] = ()
) -> dict[str, float]:
    """Parses the arguments of `NAME:1,2` or `NAME:a=1,b=2`: positional ones first, then keywords.

    Args:
        spec: The specification, with or without arguments.
        parameters: The default of each parameter by name, in order; None if the argument is required.
        integers: Parameters that must be whole numbers of at least 1. Their values come back as int.

    Returns:
        The value of each parameter, in the order of `parameters`.

    Raises:
        InputError: Wrong number of arguments, an unknown or repeated keyword, or a value that is not such a number.
    """
    name, _, text = spec.partition(":")
    usage = ",".join(key if default is None else f"[{key}={default}]" for key, default in parameters.items())
    expected = f"expected {name}:{usage}" if parameters else f"{name} takes no arguments"
    pieces = [piece.strip() for piece in text.split(",")] if text else []
    positional = [piece for piece in pieces if "=" not in piece]
    if len(pieces) > len(parameters) or pieces[: len(positional)] != positional:
        raise InputError(f"Bad {spec!r}: {expected}.")
    named = [piece.split("=", 1) for piece in pieces[len(positional) :]]
    arguments: dict[str, float] = {}
    for key, value in [*zip(parameters, positional, strict=False), *named]:
        if key not in parameters or key in arguments:
            problem = "repeated" if key in arguments else "unknown"
            raise InputError(f"Bad {spec!r}: {problem} argument {key!r}; {expected}.")
        arguments[key] = _number(spec, key, value, key in integers)
    values = {key: arguments.get(key, default) for key, default in parameters.items()}
    missing = [key for key, value in values.items() if value is None]
    if missing:
        raise InputError(f"Bad {spec!r}: no value for {', '.join(missing)}; {expected}.")
    return {key: value for key, value in values.items() if value is not None}


def format_spec(name: str, *values: float, **named: float) -> str:
    """NAME:1,b=2.5 from numbers, with the fewest digits that read back the same. The inverse of `parse_arguments`."""
    pieces = [*map(_digits, values), *(f"{key}={_digits(value)}" for key, value in named.items())]
    return f"{name}:{','.join(pieces)}" if pieces else name


def _digits(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


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
    """The numbers of `start:stop:step`, both ends included, or of a comma list.

    `option` is the command-line option that error messages mention. Raises InputError for text that is not a number, a
    step that does not lead from start to stop, or more than 10,001 values.
    """
    separator = ":" if ":" in text else ","
    pieces = text.split(separator)
    if separator == ":" and len(pieces) != 3:
        raise InputError(
            f"Expected {option} as start:stop:step or a comma list, such as 0:1:0.05 or 0,0.5,1, but got {text!r}."
        )
    try:
        numbers = [_number(text, "each value", piece, whole=False) for piece in pieces]
    except InputError as error:
        raise InputError(str(error).replace("Bad ", f"Bad {option} ", 1)) from None
    if separator == ",":
        return tuple(numbers)
    start, stop, step = numbers
    if start == stop:
        return (start,)
    if step == 0 or (stop - start) / step < 0:
        raise InputError(
            f"Bad {option} {text!r}: a step of {step:g} does not lead from {start:g} to {stop:g}. Use a nonzero "
            "step with the sign of stop - start."
        )
    count = round(min((stop - start) / step, _OVERFLOW_GUARD))
    if count > _MAX_STEPS:
        raise InputError(
            f"Bad {option} {text!r}: expected at most {_MAX_STEPS + 1:,} values, but got {count + 1}. Use a larger "
            "step."
        )
    if count < 1 or abs(start + count * step - stop) > _END_TOLERANCE * abs(step):
        raise InputError(
            f"Bad {option} {text!r}: the step {step:g} does not divide the range from {start:g} to {stop:g}. Change "
            "the step or an end."
        )
    return (*(round(start + k * step, 12) for k in range(count)), stop)
