"""Which files a command reads: their hashes, compared when a run resumes, and whether they change meanwhile."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mfdiag.errors import InputError, abbreviated

__all__ = ["InputRecord", "changed_inputs", "current_inputs", "note_hash", "note_read", "reading", "recording"]

_WHOLE_BYTES = 2**30  # more is hashed by blocks, which takes no longer than a second
_BLOCKS, _BLOCK_BYTES = 256, 2**16
_STAMPED_FILES = 4096  # of a folder, whose sizes and times are compared
_WATCHED = "data"  # kind of the inputs that are read throughout a pass; others are in memory once they are loaded

Stamp = tuple[int, int, int, int]  # size, times of change in ns, inode


@dataclass(frozen=True)
class _Input:
    """A file, or a folder of files, as it was when it was read."""

    kind: str
    of: str
    label: str
    path: Path
    sha256: str
    files: tuple[Path, ...] = ()
    names: Sequence[str] | None = None
    sampled: bool = False
    stamps: tuple[Stamp | None, ...] = ()

    @property
    def entry(self) -> dict[str, Any]:
        """Its entry in a manifest."""
        optional = {"of": self.of} if self.of != self.label else {}
        return {"path": self.label, "sha256": self.sha256, "kind": self.kind, **optional} | (
            {"hash": f"{_BLOCKS} blocks"} if self.sampled else {}
        )


@dataclass
class InputRecord:
    """What a command has read so far.

    Attributes:
        started: When the command started, in seconds since the epoch.
        scope: Kind and specification of what is being read; see `reading`.
    """

    started: float = field(default_factory=time.time)
    scope: tuple[str, str] | None = None
    _inputs: dict[tuple[str, str, str], _Input] = field(default_factory=dict)
    _folders: set[tuple[str, str, Path]] = field(default_factory=set)
    _changed: list[str] = field(default_factory=list)

    def entries(self) -> list[dict[str, Any]]:
        """Each input as it stands in a manifest: path, SHA-256, kind, and the specification that refers to it."""
        return [item.entry for item in self._inputs.values()]

    def add(
        self, kind: str, of: str, path: Path, names: Sequence[str] | None = None, sha256: str | None = None
    ) -> None:
        """Record a file, or files of a folder, before it is read.

        Args:
            kind: What it is: data, code, card or teacher.
            of: The specification that refers to it.
            path: The file or folder.
            names: Names of the files in the folder that are read; None for a file.
            sha256: Its hash, if it is known.
        """
        if any((kind, of, folder) in self._folders for folder in path.parents):
            return  # the folder's hash covers it
        key = (kind, of, f"{path}, {len(names)} files from {names[0]}" if names else str(path))
        watched = tuple(_stamped_files(path, names)) if kind == _WATCHED else ()
        stamps = tuple(map(_stamp, watched))
        if key in self._inputs:
            if self._inputs[key].stamps != stamps:
                self._recheck(key)
            return
        sampled = False
        if sha256 is None:
            try:
                sha256, sampled = _digest(path, names)
            except (OSError, ValueError):
                return  # reading it says why
        if names is not None:
            self._folders.add((kind, of, path))
        self._inputs[key] = _Input(kind, of, key[-1], path, sha256, watched, names, sampled, stamps)

    def require_unchanged(self) -> None:
        """InputError if data changed since they were first read."""
        for key, item in list(self._inputs.items()):
            if item.stamps != tuple(map(_stamp, item.files)):
                self._recheck(key)
        if self._changed:
            raise InputError(
                f"Expected data that stay as they are while they are measured, but {abbreviated(self._changed)} "
                "changed meanwhile, so this measurement is not written. Measure again when nothing writes to it."
            )

    def _recheck(self, key: tuple[str, str, str]) -> None:
        """Hash an input again whose files have other times: it changed unless all of it is the same."""
        item = self._inputs[key]
        if not item.sampled:
            with suppress(OSError):
                stamps = tuple(map(_stamp, item.files))
                if _digest(item.path, item.names)[0] == item.sha256:
                    self._inputs[key] = replace(item, stamps=stamps)
                    return
        if item.label not in self._changed:
            self._changed.append(item.label)


_CURRENT: ContextVar[InputRecord | None] = ContextVar("inputs", default=None)


_process: int | None = None  # that has run a command


def _process_start() -> float:
    """When this process started, in seconds since the epoch; now where the system does not tell."""
    now = time.time()
    with suppress(OSError, ValueError, IndexError, AttributeError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return min(now, now - age)
    return now


@contextmanager
def recording() -> Iterator[InputRecord]:
    """Record what is read within."""
    global _process
    record = InputRecord()
    if _process != os.getpid():  # the first command of a process started with it: loading the program takes seconds
        _process, record.started = os.getpid(), _process_start()
    token = _CURRENT.set(record)
    try:
        yield record
    finally:
        _CURRENT.reset(token)


def current_inputs() -> InputRecord:
    """The record of the running command; an empty one where nothing is recorded."""
    return _CURRENT.get() or InputRecord()


@contextmanager
def reading(kind: str, of: str) -> Iterator[None]:
    """What is read within belongs to the specification `of`, unless an outer one already says so."""
    record = _CURRENT.get()
    if record is None or record.scope is not None:
        yield
        return
    record.scope = (kind, of)
    try:
        yield
    finally:
        record.scope = None


def note_read(path: Path, names: Sequence[str] | None = None, kind: str | None = None) -> None:
    """Record that `path` is about to be read: a file, or files of a folder.

    Args:
        path: The file or folder.
        names: Names of the files in the folder that are read.
        kind: What it is; by default what `reading` says. Without either, nothing is recorded.
    """
    record = _CURRENT.get()
    if record is None or (record.scope is None and kind is None):
        return
    own_kind, of = record.scope or ("", "")
    if kind is not None and kind != own_kind:
        own_kind, of = kind, str(path)
    record.add(own_kind, of, path, names)


def note_hash(kind: str, path: Path, sha256: str) -> None:
    """Record a file whose hash is known.

    Args:
        kind: What it is.
        path: The file.
        sha256: Its hash.
    """
    record = _CURRENT.get()
    if record is not None:
        record.add(kind, str(path), path, sha256=sha256)


def changed_inputs(earlier: Iterable[Mapping[str, Any]], now: Iterable[Mapping[str, Any]]) -> list[str]:
    """What two runs read differently under the same specification: `kind path`, each once.

    Args:
        earlier: Entries of a manifest; those of checkpoints have no kind and are not compared.
        now: Entries of the present run.

    Returns:
        Changed files, and files of data that only one of the runs has read.
    """
    before, after = _by_specification(earlier), _by_specification(now)
    changed = []
    for key in before.keys() & after.keys():
        kind, _ = key
        both_read = before[key].keys() & after[key].keys()
        paths = before[key].keys() | after[key].keys() if kind == _WATCHED else both_read
        changed += [f"{kind} {path}" for path in paths if before[key].get(path) != after[key].get(path)]
    return sorted(changed)


def _by_specification(entries: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, str]]:
    """(kind, specification) -> path -> hash."""
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for entry in entries:
        if "kind" in entry:
            key = (str(entry["kind"]), str(entry.get("of", entry.get("path"))))
            groups.setdefault(key, {})[str(entry.get("path"))] = str(entry.get("sha256"))
    return groups


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: no file can have such a name
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _evenly(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, at equal distances, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]


def _stamped_files(path: Path, names: Sequence[str] | None) -> list[Path]:
    """The file, or files of the folder at equal distances."""
    return [path] if names is None else [path / name for name in _evenly(names, _STAMPED_FILES)]


def _digest(path: Path, names: Sequence[str] | None) -> tuple[str, bool]:
    """SHA-256 of a file, or of the names and contents of a folder's files; and whether it is of blocks alone.

    The hash of one whole file is that of its bytes, as `sha256sum` gives it. Raises OSError if a file cannot be read.
    """
    digest = hashlib.sha256()
    if names is not None:
        digest.update("\0".join(names).encode("utf-8", "surrogateescape"))
    files = _stamped_files(path, names)
    statuses = [file.stat() for file in files]
    if not all(stat.S_ISREG(status.st_mode) for status in statuses):
        raise OSError(errno.EINVAL, "a pipe or a device has no content to hash")
    sizes = [status.st_size for status in statuses]
    if (names is None or len(files) == len(names)) and sum(sizes) <= _WHOLE_BYTES:
        for file, size in zip(files, sizes, strict=True):
            if names is not None:
                digest.update(f"\0{size}\0".encode())
            with file.open("rb") as stream:
                hashlib.file_digest(stream, lambda: digest)
        return digest.hexdigest(), False
    digest.update(f"{sizes}".encode())
    chosen = _evenly(list(zip(files, sizes, strict=True)), _BLOCKS)
    for file, size in chosen:
        with file.open("rb") as stream:
            for offset in _offsets(size, max(2, _BLOCKS // len(chosen))):
                stream.seek(offset)
                digest.update(stream.read(_BLOCK_BYTES))
    return digest.hexdigest(), True


def _offsets(size: int, count: int) -> list[int]:
    """Where `count` blocks of a file of `size` bytes start, the last one at its end."""
    last = max(0, size - _BLOCK_BYTES)
    return sorted({last * k // (count - 1) for k in range(count)})
