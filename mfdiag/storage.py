"""Atomic writes and file hashes. Imports nothing but the standard library."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import platform
import re
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mfdiag.errors import InputError

__all__ = [
    "atomic_write",
    "exists",
    "expanded",
    "is_file",
    "is_folder",
    "read_text",
    "remedy_of",
    "remove_orphans",
    "require_headroom",
    "run_folder",
    "save_torch",
    "sha256_of",
    "temporary_path",
]

_TEMPORARY = re.compile(r"\..*\.(?:(?P<host>[0-9a-f]{8})-(?P<process>[0-9]{1,10})-)?[0-9a-f]{32}\.tmp")
_DEAD_SECONDS = 3600  # a temporary file of another machine that nobody wrote to for so long
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "Free disk space, or choose another folder"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "Raise the limit of open files (`ulimit -n`)"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Fix permissions, or choose another folder"),
    **dict.fromkeys((errno.ENOENT, errno.ESTALE), "Check that the folder still exists"),
}
_KEPT = re.compile(r"step=\d+")
_HEADROOM = 32 << 20  # bytes; a table's own buffers are far smaller
_mine: set[Path] = set()  # temporary files that this process writes


def temporary_path(path: Path) -> Path:
    """A new name beside `path` that tells which process of which machine writes it."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{uuid.uuid4().hex}.tmp")


def remove_orphans(*folders: Path) -> None:
    """Delete the temporary files that killed processes left in these folders; those of live ones stay."""
    for folder in folders:
        with suppress(OSError):
            for path in list(folder.glob(".*.tmp")):
                if _is_orphan(path):
                    path.unlink(missing_ok=True)


def _is_orphan(path: Path) -> bool:
    match = _TEMPORARY.fullmatch(path.name)
    if match is None or path in _mine:
        return False
    if match["host"] == _host() and not _is_alive(int(match["process"])):
        return True
    return time.time() - path.stat().st_mtime > _DEAD_SECONDS


def _is_alive(process: int) -> bool:
    """Whether another process has this number; files of this one are in `_mine`."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to another user
        return True
    return True


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def remedy_of(error: OSError) -> str:
    """What to do about an error of the file system, as a clause."""
    return _REMEDIES.get(error.errno or 0, "Check the disk and permissions, or choose another folder")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to. Success moves it to `path`; failure deletes it.

    A reader sees the old file or the new one, never a part of one. Raises InputError if the folder cannot be created
    or written, or if the disk is full.
    """
    temporary = temporary_path(path)
    _mine.add(temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"Cannot write {path} ({error.strerror or error}). {remedy_of(error)}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
        _mine.discard(temporary)


def save_torch(content: object, path: Path) -> None:
    """Write a file of torch.save atomically.

    Args:
        content: Tensors, plain values, and lists and dictionaries of them.
        path: The file.

    Raises:
        InputError: It cannot be written.
    """
    import torch

    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:  # torch hides the error of the file behind its own
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every platform can open a folder; the rename is atomic without this
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def require_headroom() -> None:
    """Fail before a library runs out of memory that ends the process where it cannot have a few bytes, as Arrow does.

    Nothing is filled, so that only a limit of the process or of the machine's address space is noticed.

    Raises:
        MemoryError: Less than 32 MiB are left.
    """
    try:
        mmap.mmap(-1, _HEADROOM).close()
    except OSError as error:
        raise MemoryError from error


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


def read_text(path: Path, most_bytes: int = 2**28) -> str:
    """The text of a regular file of bounded size.

    Args:
        path: The file.
        most_bytes: The size from which it is refused, for it would take many times as much memory.

    Returns:
        Its text.

    Raises:
        OSError: It is missing, too large, no regular file (a pipe may never end), or cannot be read.
        UnicodeDecodeError: It is not UTF-8.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    if status.st_size > most_bytes:
        raise OSError(errno.EFBIG, f"it has {status.st_size:,} bytes, more than {most_bytes:,}", str(path))
    return path.read_text(encoding="utf-8")


def exists(path: Path) -> bool:
    """Whether there is anything at `path`; False for a name that nothing can have, for which pathlib may raise."""
    return os.path.exists(path)  # noqa: PTH110


def expanded(path: str) -> Path:
    """`path` with a home folder for ~ and ~user, and as it stands where nobody has that name, as in a shell."""
    try:
        return Path(os.path.expanduser(path))  # noqa: PTH111  (that of pathlib raises there)
    except ValueError:  # no user can have such a name
        return Path(path)


def is_file(path: Path) -> bool:
    """Whether `path` is a regular file; False for a name that no file can have."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder; False for a name that no folder can have."""
    return os.path.isdir(path)  # noqa: PTH112


def run_folder(checkpoint: Path) -> Path:
    """The folder of a checkpoint's run, which keeps its earlier checkpoints in folders `step=N`."""
    folder = checkpoint.parent
    return folder.parent if _KEPT.fullmatch(folder.name) and folder.parent.name else folder
