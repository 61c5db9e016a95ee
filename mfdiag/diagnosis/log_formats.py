"""Files that training logs come in: CSV, JSON lines, trainer_state.json, TensorBoard's events, W&B's offline runs."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from mfdiag.errors import InputError, first_line, is_out_of_memory

__all__ = ["read_rows"]

_EVENTS = "events.out.tfevents"
_WANDB_MAGIC = b":W&B"
_WANDB_HEADER = 7  # bytes: magic, checksum and version
_BLOCK = 32768  # of LevelDB's log format, which W&B writes
_RECORD = "<IHB"  # checksum, length and kind of a piece
_LARGEST = 256 << 20  # bytes; as a table a log takes several times that
_LAST_PIECES = (1, 4)  # a whole record, or its last piece


def read_rows(path: Path) -> pd.DataFrame:
    """Read a training log.

    Args:
        path: A CSV file, JSON lines, Hugging Face's trainer_state.json, an event file of TensorBoard or a folder with
            some, or an offline run of W&B (its folder or .wandb file).

    Returns:
        One row per logged step, numbers and their step by name.

    Raises:
        InputError: The file cannot be read or is too large, or a library that reads it is not installed.
    """
    try:
        return _rows(path)
    except InputError:
        raise
    except Exception as error:  # whatever a damaged file leads to in the libraries that read it
        if is_out_of_memory(error):
            raise
        raise InputError(
            "Expected a training log (CSV, JSON lines, trainer_state.json, TensorBoard, W&B offline), but "
            f"{path} cannot be read: {first_line(error)}. Pass another --log."
        ) from error


def _require_readable(path: Path) -> None:
    """InputError where a file is no regular one, or would take too much memory as a table."""
    if not path.is_file():
        raise InputError(f"Expected a training log, but {path} is no regular file; pass another --log.")
    if (size := path.stat().st_size) > _LARGEST:
        raise InputError(
            f"Expected a training log of at most {_LARGEST >> 20} MiB, but {path} has {size >> 20} MiB; "
            "keep fewer steps or columns, or pass another --log."
        )


def _rows(path: Path) -> pd.DataFrame:
    events = sorted(path.rglob(f"*{_EVENTS}*")) if path.is_dir() else [path] if _EVENTS in path.name else []
    runs = sorted(path.glob("*.wandb")) if path.is_dir() else [path] if path.suffix == ".wandb" else []
    for file in events or runs[:1] or [path]:
        if file.exists():  # else the error says so
            _require_readable(file)
    if events:
        return pd.concat([_tensorboard(file) for file in events], ignore_index=True).sort_values("step")
    if runs:
        return pd.DataFrame(_wandb(runs[0]))
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        history = content["log_history"] if isinstance(content, dict) else content
        return pd.DataFrame([row for row in history if "loss" in row])  # others are evaluations and a summary
    if path.suffix in (".jsonl", ".ndjson"):
        return pd.read_json(path, lines=True)
    return pd.read_csv(path, sep=None, engine="python")


def _tensorboard(path: Path) -> pd.DataFrame:
    try:
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    except ImportError:
        raise _missing("tensorboard", path) from None
    rows: dict[int, dict[str, float]] = {}
    for event in LegacyEventFileLoader(str(path)).Load():
        for value in event.summary.value:
            number = value.simple_value
            if value.HasField("tensor") and value.tensor.float_val:
                number = value.tensor.float_val[0]
            rows.setdefault(event.step, {"step": event.step})[value.tag] = number
    return pd.DataFrame(list(rows.values()))


def _wandb(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of the history of an offline run."""
    content = path.read_bytes()
    if not content.startswith(_WANDB_MAGIC):
        raise ValueError("it does not begin as a file of W&B")
    try:
        from wandb.proto import wandb_internal_pb2
    except ImportError:
        raise _missing("wandb", path) from None
    messages: Any = wandb_internal_pb2  # its types are made when it is imported
    for entry in _leveldb_records(content):
        record = messages.Record()
        record.ParseFromString(entry)
        if record.WhichOneof("record_type") == "history":
            yield {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}


def _leveldb_records(content: bytes) -> Iterator[bytes]:
    """Records of LevelDB's log format: pieces that do not cross blocks."""
    size, position, record = struct.calcsize(_RECORD), _WANDB_HEADER, b""
    while position + size <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < size:  # the end of a block is not used
            position += left
            continue
        _, length, kind = struct.unpack_from(_RECORD, content, position)
        position += size
        record += content[position : position + length]
        position += length
        if kind in _LAST_PIECES:
            yield record
            record = b""


def _missing(extra: str, path: Path) -> InputError:
    return InputError(f"Reading {path} needs {extra}: pip install 'mfdiag[{extra}]'.")
