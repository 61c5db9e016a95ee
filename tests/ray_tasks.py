"""A task for Ray in a file of its own, because workers import what is imported here."""

from __future__ import annotations

from collections.abc import Callable

from mfdiag.errors import InputError


def double(say: Callable[[str], None], number: int) -> int:
    if number < 0:
        raise InputError("Negative.")
    say(f"note of {number}")
    return 2 * number
