"""Calls of networks that have begun and not ended: torch's hooks do not see what ends one by sys.exit or Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["begin_call", "calls_closed", "end_calls_within"]


class _Open(threading.local):
    """The open calls of a thread, outer ones first: whose call, and what undoes its contexts."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, Callable[[], None]]] = []


_OPEN = _Open()


def begin_call(owner: object, undo: Callable[[], None]) -> None:
    """Note that a call of `owner` has begun."""
    _OPEN.calls.append((owner, undo))


def end_calls_within(owner: object) -> None:
    """Undo what began within the last call of `owner` and did not end, and forget that call."""
    while _OPEN.calls:
        other, undo = _OPEN.calls.pop()
        if other is owner:
            return
        undo()


@contextmanager
def calls_closed() -> Iterator[None]:
    """After this context, every call that began in it has ended, also those that sys.exit or Ctrl-C broke off."""
    before = len(_OPEN.calls)
    try:
        yield
    finally:
        while len(_OPEN.calls) > before:
            _, undo = _OPEN.calls.pop()
            undo()
