"""The one exception root. The command line catches it once and exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["InputError", "MfdiagError", "did_you_mean"]


class MfdiagError(Exception):
    """Root of every error mfdiag raises on purpose; its text is one sentence for the user."""


class InputError(MfdiagError):
    """Bad input: says what was expected, what came, and what to do."""


def did_you_mean(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for an unknown name: nearest known names first, then all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return InputError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")
