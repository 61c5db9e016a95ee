"""What the fixture `cli` returns, under a name that no other folder's conftest hides."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Result(NamedTuple):
    """What a command left in the terminal."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]
