"""Atomic writes and file hashes. Imports nothing but the standard library."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mfdiag.errors import InputError

__all__ = ["atomic_write", "exists", "is_file", "is_folder", "sha256_of"]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to. Success moves it to `path`; failure deletes it.

    A reader sees the old file or the new one, never a part of one. Raises InputError if the folder cannot be created
    or written, or if the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(
            f"Cannot write {path} ({error.strerror or error}). Free disk space, fix permissions, or choose another "
            "folder."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every platform can open a folder; the rename is atomic without this
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of(*paths: Path) -> str:
    """SHA-256 of the concatenated contents, 64 hexadecimal digits. Raises InputError if a file cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as stream:
                hashlib.file_digest(stream, lambda: digest)
        except OSError as error:
            raise InputError(f"Cannot read {path} ({error.strerror or error}). Check the path.") from error
    return digest.hexdigest()


def exists(path: Path) -> bool:
    """Whether there is anything at `path`; False for a name that nothing can have, for which pathlib may raise."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: Path) -> bool:
    """Whether `path` is a regular file; False for a name that no file can have."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder; False for a name that no folder can have."""
    return os.path.isdir(path)  # noqa: PTH112
