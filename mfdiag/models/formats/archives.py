"""Zip archives that torch wrote, checked before anything reads them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from mfdiag.errors import InputError

__all__ = ["checked_records", "damaged_file"]


def damaged_file(path: Path, container: str, reason: object) -> InputError:
    """The error for a file that is incomplete, or that was made to look like a file of its format.

    Args:
        path: The file.
        container: Its format, as in "torch zip".
        reason: What is wrong with it.

    Returns:
        The error, to be raised.
    """
    return InputError(
        f"Expected a complete {container} file, but {path} is truncated or damaged ({reason}); "
        "copy or download it again."
    )


def checked_records(archive: zipfile.ZipFile, path: Path, size: int | None = None) -> dict[str, zipfile.ZipInfo]:
    """The records of a torch archive by their names below its only folder.

    torch stores records uncompressed.

    Args:
        archive: The archive.
        path: The file that it is in, for errors.
        size: Bytes of the archive, if it is not the whole file.

    Returns:
        The records.

    Raises:
        InputError: If records are compressed, share a name, or are larger than the file in total: those could fill the
            memory, or read differently in another reader.
    """
    infos = archive.infolist()
    records = {info.filename.partition("/")[2]: info for info in infos}
    if len(records) < len(infos) or len({info.filename.partition("/")[0] for info in infos}) > 1:
        raise damaged_file(path, "torch zip", "its records do not lie in one folder, each once")
    stored = all(info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size for info in infos)
    if not stored or sum(info.file_size for info in infos) > (path.stat().st_size if size is None else size):
        raise damaged_file(path, "torch zip", "its records are compressed or overlap")
    return records
