"""Files on disk: whole or not at all, and what is in them by hash. Imports nothing but the standard library."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mfdiag.errors import InputError

__all__ = ["replacing", "sha256_of"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on success it takes the place of `path`, on failure it vanishes.

    A reader sees the old file or the new one, never a part, whatever happens in between.
    Raises InputError where the folder cannot be created or written, or the disk is full.
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
            f"Cannot write {path} ({error.strerror or error}): free the place, or choose another folder."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every platform opens folders; the rename itself is already atomic
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of(*paths: Path) -> str:
    """SHA-256 of the files' contents one after another, 64 hexadecimal digits. InputError if one cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as stream:
                hashlib.file_digest(stream, lambda: digest)
        except OSError as error:
            raise InputError(f"Cannot read {path} ({error.strerror or error}): check the path.") from error
    return digest.hexdigest()
