"""Files that users and checkpoints name: nothing outside a checkpoint's folder is read, and only regular files are."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from mfdiag.errors import InputError
from mfdiag.storage import is_file

__all__ = ["file_beside", "regular_file"]

_MAX_SHOWN = 60  # characters of a name in an error
_SEPARATORS = ("/", "\\", "\0")


def regular_file(path: Path) -> Path:
    """`path` itself, if it is a regular file that can be read and is not empty.

    Pipes and devices are refused before they are opened: reading one may wait for ever, and a second reading of it has
    other content.

    Args:
        path: The file, as the user passed it.

    Returns:
        `path`.

    Raises:
        InputError: If it is missing, unreadable, empty, or no regular file.
    """
    try:
        is_regular = stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"Expected a checkpoint file, but {_shown(path)} does not exist; check the path.") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"Expected a readable checkpoint, but {_shown(path)} is not ({_reason(error)}); check it."
        ) from error
    if not is_regular:
        raise InputError(
            f"Expected a checkpoint file, but {_shown(path)} is a pipe or a device; save its content to a file first."
        )
    try:
        with path.open("rb") as stream:
            if stream.read(1):
                return path
    except OSError as error:
        raise InputError(
            f"Expected a readable checkpoint, but {_shown(path)} is not ({_reason(error)}); check it."
        ) from error
    raise InputError(f"Expected a checkpoint, but {_shown(path)} is empty; write or download it again.")


def file_beside(index: Path, name: Any) -> Path:
    """The file that a checkpoint names, which must be a regular file in the folder of the checkpoint.

    Args:
        index: The file that states the name.
        name: The name, as it was read: any value.

    Returns:
        The path of the file.

    Raises:
        InputError: If the name is no text, leads outside the folder, or no such file exists or can exist.
    """
    if not isinstance(name, str) or any(mark in name for mark in _SEPARATORS) or not name.strip("."):
        raise InputError(
            f"Expected the shards of {index} in its own folder, but it names {_quoted(name)}; mfdiag reads nothing "
            "outside its folder. Correct the index."
        )
    path = index.parent / name
    if not is_file(path):
        raise InputError(f"Expected the shard {_quoted(name)} beside {index}, but it is missing; download the shard.")
    return path


def _shown(path: Path) -> str:
    """A path as text that any terminal can print, shortened if it is very long."""
    text = os.fspath(path)
    return text if text.isprintable() and len(text) <= _MAX_SHOWN * 10 else _quoted(text)


def _quoted(name: Any) -> str:
    text = name if isinstance(name, str) else repr(name)
    short = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
    return repr(short) if isinstance(name, str) else short


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error).partition("\n")[0]
