"""Locks between processes that write to one folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mfdiag.errors import InputError

__all__ = ["file_lock"]

_POLL_SECONDS = 0.1


@contextmanager
def file_lock(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock `path` alone among all processes, and remove its file at the end.

    The system frees the lock of a killed process, so that nobody waits for one.

    Args:
        path: The file of the lock; its folder is created.
        waiting: Called once, if another process holds the lock.

    Raises:
        InputError: The folder cannot be written.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting is not None:
                waiting()
            lock.acquire(poll_interval=_POLL_SECONDS)  # also right if the holder removes the file
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"Cannot lock {path} ({reason}). Fix permissions, or choose another folder.") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still held
        lock.release()
