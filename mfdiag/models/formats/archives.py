"""Zip archives written by torch, checked before anything reads them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from mfdiag.errors import InputError

__all__ = ["damaged", "records"]


def damaged(path: Path, container: str, why: object) -> InputError:
    """The error for a file that is not whole, or is made to be no whole file of its kind."""
    return InputError(
        f"Expected a complete {container} file, but {path} is truncated or damaged ({why}); copy or download it again."
    )


def records(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The records of torch's archive by their name below its one folder.

    torch stores records as they are. One that is compressed, there twice, or larger with the others than the file
    itself could fill the memory, or be read differently by another reader: InputError.
    """
    infos = archive.infolist()
    named = {info.filename.partition("/")[2]: info for info in infos}
    if len(named) < len(infos) or len({info.filename.partition("/")[0] for info in infos}) > 1:
        raise damaged(path, "torch zip", "its records do not lie in one folder, each once")
    stored = all(info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size for info in infos)
    if not stored or sum(info.file_size for info in infos) > path.stat().st_size:
        raise damaged(path, "torch zip", "its records are compressed or overlap")
    return named
