"""Files in a folder, or inside tar and zip archives: listed once, read at random. Nothing is unpacked."""

from __future__ import annotations

import errno
import os
import stat
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
from mfdiag.inputs import note_read

__all__ = ["ARCHIVES", "ArchivedFiles", "FileSource", "FolderFiles", "open_file_source"]

ARCHIVES = (".tar", ".zip")
_ZIP_HEADER = struct.Struct("<26xHH")  # of a zipped file, up to the lengths of its name and extra field


class FileSource(Protocol):
    """Files by number."""

    @property
    def names(self) -> Sequence[str]:
        """Their names, with / between folders. In archives, the archive's name comes first."""

    def location(self, row: int) -> str:
        """Where a file lies, for error messages. Ends with the file's extension."""

    def read(self, rows: np.ndarray) -> Iterator[bytes]:
        """The contents of the files `rows`, in this order, one at a time. Ascending rows are read in disk order."""

    def first(self) -> Path | BytesIO:
        """File 0 as something to open, because it may be too large to read whole."""

    def subset(self, rows: Sequence[int]) -> FileSource:
        """The files `rows` alone, renumbered."""


@dataclass(frozen=True)
class FolderFiles:
    """Files below `root`, by their paths relative to it."""

    root: Path
    names: Sequence[str]

    @classmethod
    def scan(cls, root: Path) -> FolderFiles:
        """All files below `root` except hidden ones, sorted by name. Links to files are followed."""
        names = []
        for folder, subfolders, files in os.walk(root):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            relative = Path(folder).relative_to(root)
            names += [(relative / name).as_posix() for name in files if not name.startswith(".")]
        names.sort()
        note_read(root, names)
        return cls(root, names)

    def location(self, row: int) -> str:
        """See `FileSource.location`."""
        return str(self.root / self.names[row])

    def read(self, rows: np.ndarray) -> Iterator[bytes]:
        """See `FileSource.read`. Raises InputError if a file cannot be read."""
        for row in rows:
            path = self.root / self.names[row]
            try:
                if not stat.S_ISREG(path.stat().st_mode):
                    raise OSError(errno.EINVAL, "it is a pipe or a device")
                yield path.read_bytes()
            except OSError as error:
                raise InputError(f"Cannot read {path} ({error.strerror}). Check that it still exists.") from error

    def first(self) -> Path:
        """See `FileSource.first`."""
        return self.root / self.names[0]

    def subset(self, rows: Sequence[int]) -> FolderFiles:
        """See `FileSource.subset`."""
        return FolderFiles(self.root, [self.names[row] for row in rows])


@dataclass(frozen=True, eq=False)
class ArchivedFiles:
    """Files in uncompressed archives: file i is `size[i]` bytes at `offset[i]` of `paths[archive[i]]`."""

    paths: Sequence[Path]
    names: Sequence[str]
    archive: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    @classmethod
    def scan(cls, paths: Sequence[Path]) -> ArchivedFiles:
        """All regular files in the archives, in the order of the archives.

        Links, devices and folders are skipped. Names are labels only: none is used as a path. Raises InputError for
        archives that are damaged, compressed, or empty.
        """
        names: list[str] = []
        extents: list[tuple[int, int, int]] = []
        for number, path in enumerate(paths):
            note_read(path)
            list_files = _list_tar if path.suffix.lower() == ".tar" else _list_zip
            try:
                if path.exists() and not path.is_file():
                    raise ValueError("it is no regular file")
                for name, offset, size in list_files(path):
                    names.append(f"{path.name}/{name.removeprefix('./')}")
                    extents.append((number, offset, size))
            except (tarfile.TarError, zipfile.BadZipFile, struct.error, EOFError, OSError, ValueError) as error:
                raise InputError(
                    f"Cannot read {path} ({error}); expected a complete, uncompressed {path.suffix} archive. Copy "
                    "or write it again."
                ) from error
        if not names:
            raise InputError(f"Expected files in {', '.join(map(str, paths))}, but it holds no files. Check the path.")
        archive, offset, size = np.array(extents, dtype=np.int64).T
        return cls(paths, names, archive, offset, size)

    def location(self, row: int) -> str:
        """See `FileSource.location`."""
        return f"{self.paths[int(self.archive[row])].parent}/{self.names[row]}"

    def read(self, rows: np.ndarray) -> Iterator[bytes]:
        """See `FileSource.read`. Raises InputError if an archive cannot be read."""
        file, open_archive = None, -1
        try:
            for row in rows:
                if self.archive[row] != open_archive:
                    if file is not None:
                        file.close()
                    open_archive = int(self.archive[row])
                    file = self.paths[open_archive].open("rb")
                assert file is not None
                file.seek(int(self.offset[row]))
                yield file.read(int(self.size[row]))
        except OSError as error:
            path = self.paths[open_archive]
            raise InputError(f"Cannot read {path} ({error.strerror}). Check that it still exists.") from error
        finally:
            if file is not None:
                file.close()

    def first(self) -> BytesIO:
        """See `FileSource.first`."""
        return BytesIO(next(self.read(np.zeros(1, dtype=np.int64))))

    def subset(self, rows: Sequence[int]) -> ArchivedFiles:
        """See `FileSource.subset`."""
        index = np.asarray(rows, dtype=np.int64)
        names = [self.names[row] for row in rows]
        return ArchivedFiles(self.paths, names, self.archive[index], self.offset[index], self.size[index])


def open_file_source(path: Path) -> FileSource:
    """The files in the folder `path`. If it is or holds archives, the files in these; see `ArchivedFiles.scan`."""
    if not path.is_dir():
        return ArchivedFiles.scan([path])
    archives = sorted(file for file in path.iterdir() if file.suffix.lower() in ARCHIVES)
    return ArchivedFiles.scan(archives) if archives else FolderFiles.scan(path)


def _list_tar(path: Path) -> Iterable[tuple[str, int, int]]:
    """Name, offset and size of each regular file."""
    with tarfile.open(path, "r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # all headers together would dominate the memory
            if member.isreg():
                if member.issparse():
                    raise ValueError(f"{member.name!r} is stored as a sparse file")
                yield member.name, member.offset_data, member.size
        end = tar.offset
    with path.open("rb") as file:  # tarfile treats a header that it cannot read as the end
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("unexpected end of data")


def _list_zip(path: Path) -> Iterable[tuple[str, int, int]]:
    """Name, offset and size of each file."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            if member.is_dir():
                continue
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename!r} is compressed; pack with zip -0")
            file.seek(member.header_offset)
            name_length, extra_length = _ZIP_HEADER.unpack(file.read(_ZIP_HEADER.size))
            offset = member.header_offset + _ZIP_HEADER.size + name_length + extra_length
            yield member.filename, offset, member.file_size
