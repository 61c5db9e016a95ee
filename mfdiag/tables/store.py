"""Tables and JSON on disk; every write is atomic."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mfdiag.errors import InputError, is_out_of_memory
from mfdiag.storage import atomic_write, read_text, require_headroom, temporary_path
from mfdiag.tables.check import to_arrow, to_pandas
from mfdiag.tables.schema import table

__all__ = [
    "MANIFEST",
    "check_writable",
    "read_json",
    "read_table",
    "table_path",
    "write_json_atomic",
    "write_table",
    "written_since",
]

MANIFEST = "manifest.json"
_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def table_path(name: str, out: Path | str) -> Path:
    """Path of table `name` in the folder `out`. Raises InputError for an unknown table."""
    return Path(out) / f"{table(name).name}.parquet"


def write_table(name: str, frame: pd.DataFrame, out: Path | str) -> Path:
    """Write a tidy frame as `out/NAME.parquet`, atomically.

    Args:
        name: Name of the table.
        frame: Its rows, with columns in any order.
        out: Folder of the results.

    Returns:
        Path of the file.

    Raises:
        InputError: The frame breaks the schema (see `tables.check.to_arrow`), or the folder cannot be written.
    """
    path = table_path(name, out)
    require_headroom()
    stored = to_arrow(name, frame)
    with atomic_write(path) as temporary:
        pq.write_table(stored, temporary.absolute(), compression="zstd")  # Arrow takes a:b for a URI, but not /a:b
    return path


def read_table(name: str, out: Path | str) -> pd.DataFrame:
    """Read `out/NAME.parquet`: integers as nullable Int64, null floats as NaN, columns in stored order.

    Raises InputError where the file is missing, is not Parquet, or breaks the schema.
    """
    path = table_path(name, out)
    if not path.is_file():
        command = f"mfdiag {table(name).command} --out {out}"
        raise InputError(f"There is no table {name!r} in {out}: {path.name} is missing. Run `{command}` first.")
    require_headroom()
    try:
        with path.open("rb") as stream, pq.ParquetFile(stream) as file:
            stored = file.read()
    except (pa.ArrowException, OSError) as error:
        if is_out_of_memory(error) or getattr(error, "errno", None) in _OF_THE_MACHINE:
            raise  # the file is whole
        raise InputError(f"{path} is not a readable Parquet file ({error}). Delete it and measure again.") from error
    try:
        return to_pandas(name, stored)
    except InputError as error:
        raise InputError(f"{path} does not hold what this version of mfdiag writes. {error}") from error


def check_writable(
    out: Path, names: list[str], mode: Literal["new", "overwrite", "resume"], started: float = math.inf
) -> None:
    """Check, before any measuring, that tables can be written; the folder stays as it was.

    Args:
        out: Folder of the results.
        names: Names of the tables.
        mode: What to do with tables that exist already.
        started: When the command started; tables that another process wrote since then are no obstacle.

    Raises:
        InputError: The folder cannot be created or written, its manifest is unreadable, or it already holds one of the
            tables and `mode` is "new".
    """
    present = [path.name for path in (table_path(name, out) for name in names) if path.exists()]
    if present and mode == "new" and not written_since(out, names, started):
        raise InputError(
            f"{out} already holds {', '.join(present)}: pass --overwrite to replace, --resume to continue, "
            "or another --out."
        )
    probe = temporary_path(out / MANIFEST)
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"Cannot write to the folder {out} ({error.strerror}): give another --out.") from error
    finally:
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()
    if (out / MANIFEST).exists():
        read_json(out / MANIFEST)


def written_since(out: Path, names: Sequence[str], started: float) -> bool:
    """Whether one of these tables was written since.

    Args:
        out: Folder of the results.
        names: Names of the tables.
        started: Since when, in seconds since the epoch.

    Returns:
        Whether one of them is newer.
    """
    paths = [table_path(name, out) for name in names]
    return any(path.stat().st_mtime >= started for path in paths if path.exists())


def _json_value(value: object) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def write_json_atomic(payload: object, path: Path) -> Path:
    """Writes indented UTF-8 JSON; paths, dates and NumPy numbers become plain. Raises InputError if it cannot."""
    text = json.dumps(payload, indent=2, ensure_ascii=False, default=_json_value) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def read_json(path: Path) -> Any:
    """Reads a JSON file. Raises InputError where it is missing or is not JSON."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a readable JSON file ({error}). Repair or delete it.") from error
