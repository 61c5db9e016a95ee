"""Files in a folder, or inside tar and zip archives, listed once and read at random; nothing is ever unpacked."""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np

from mfdiag.errors import InputError

__all__ = ["ARCHIVES", "Archives", "Folder", "Members", "open_members"]

ARCHIVES = (".tar", ".zip")
_ZIP_HEADER = struct.Struct("<26xHH")  # of a member, up to the lengths of its name and extra field


class Members(Protocol):
    """Files by number."""

    @property
    def names(self) -> Sequence[str]:
        """Their names, with / between folders; in archives, preceded by the archive's name."""

    def place(self, row: int) -> str:
        """Where a member lies, for errors; its extension is the member's."""

    def read(self, rows: np.ndarray) -> Iterator[bytes]:
        """The contents of the members `rows`, in this order, one at a time; ascending rows are read in disk order."""

    def first(self) -> Path | BytesIO:
        """Member 0, which may be too large to be read whole."""

    def subset(self, rows: Sequence[int]) -> Members:
        """The members `rows` alone, renumbered."""


@dataclass(frozen=True)
class Folder:
    """Files below `root`, by their paths relative to it."""

    root: Path
    names: Sequence[str]

    @classmethod
    def of(cls, root: Path) -> Folder:
        """All files below `root`, hidden ones apart, in the order of their names; links to files are followed."""
        names = []
        for place, folders, files in os.walk(root):
            folders[:] = [folder for folder in folders if not folder.startswith(".")]
            relative = Path(place).relative_to(root)
            names += [(relative / file).as_posix() for file in files if not file.startswith(".")]
        return cls(root, sorted(names))

    def place(self, row: int) -> str:
        """See `Members.place`."""
        return str(self.root / self.names[row])

    def read(self, rows: np.ndarray) -> Iterator[bytes]:
        """See `Members.read`."""
        for row in rows:
            path = self.root / self.names[row]
            try:
                yield path.read_bytes()
            except OSError as error:
                raise InputError(f"Cannot read {path} ({error.strerror}); is it still there?") from error

    def first(self) -> Path:
        """See `Members.first`."""
        return self.root / self.names[0]

    def subset(self, rows: Sequence[int]) -> Folder:
        """See `Members.subset`."""
        return Folder(self.root, [self.names[row] for row in rows])


@dataclass(frozen=True, eq=False)
class Archives:
    """Members of uncompressed archives: member i is `size[i]` bytes from `offset[i]` on in `paths[archive[i]]`."""

    paths: Sequence[Path]
    names: Sequence[str]
    archive: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Archives:
        """All regular files in the archives, in the order they lie there.

        Links, devices and folders are passed over, and names only name: none becomes a path. Raises InputError for
        archives that are damaged, compressed, or hold no file.
        """
        names: list[str] = []
        places: list[tuple[int, int, int]] = []
        for number, path in enumerate(paths):
            listing = _tar if path.suffix.lower() == ".tar" else _zip
            try:
                for name, offset, size in listing(path):
                    names.append(f"{path.name}/{name.removeprefix('./')}")
                    places.append((number, offset, size))
            except (tarfile.TarError, zipfile.BadZipFile, struct.error, EOFError, OSError, ValueError) as error:
                raise InputError(
                    f"Cannot read {path} ({error}); expected an uncompressed {path.suffix} archive that is whole: "
                    "copy or write it again."
                ) from error
        if not names:
            raise InputError(f"{', '.join(map(str, paths))} holds no files.")
        archive, offset, size = np.array(places, dtype=np.int64).T
        return cls(paths, names, archive, offset, size)

    def place(self, row: int) -> str:
        """See `Members.place`."""
        return f"{self.paths[int(self.archive[row])].parent}/{self.names[row]}"

    def read(self, rows: np.ndarray) -> Iterator[bytes]:
        """See `Members.read`."""
        file, opened = None, -1
        try:
            for row in rows:
                if self.archive[row] != opened:
                    if file is not None:
                        file.close()
                    opened = int(self.archive[row])
                    file = self.paths[opened].open("rb")
                assert file is not None
                file.seek(int(self.offset[row]))
                yield file.read(int(self.size[row]))
        except OSError as error:
            raise InputError(f"Cannot read {self.paths[opened]} ({error.strerror}); is it still there?") from error
        finally:
            if file is not None:
                file.close()

    def first(self) -> BytesIO:
        """See `Members.first`."""
        return BytesIO(next(self.read(np.zeros(1, dtype=np.int64))))

    def subset(self, rows: Sequence[int]) -> Archives:
        """See `Members.subset`."""
        kept = np.asarray(rows, dtype=np.int64)
        names = [self.names[row] for row in rows]
        return Archives(self.paths, names, self.archive[kept], self.offset[kept], self.size[kept])


def open_members(path: Path) -> Members:
    """The files of a folder or, where it holds archives, or `path` is one, inside them; see `Archives.of`."""
    if not path.is_dir():
        return Archives.of([path])
    archives = sorted(file for file in path.iterdir() if file.suffix.lower() in ARCHIVES)
    return Archives.of(archives) if archives else Folder.of(path)


def _tar(path: Path) -> Iterable[tuple[str, int, int]]:
    """Name, offset and size of each regular file."""
    with tarfile.open(path, "r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # all headers would be most of the memory
            if member.isreg():
                if member.issparse():
                    raise ValueError(f"member {member.name!r} is stored sparse")
                yield member.name, member.offset_data, member.size
        end = tar.offset
    with path.open("rb") as file:  # tarfile takes a header it cannot read for the end
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("unexpected end of data")


def _zip(path: Path) -> Iterable[tuple[str, int, int]]:
    """Name, offset and size of each file."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            if member.is_dir():
                continue
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"member {member.filename!r} is compressed; pack with zip -0")
            file.seek(member.header_offset)
            name, extra = _ZIP_HEADER.unpack(file.read(_ZIP_HEADER.size))
            yield member.filename, member.header_offset + _ZIP_HEADER.size + name + extra, member.file_size
