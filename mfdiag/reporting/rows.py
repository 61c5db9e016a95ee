"""Rows of tidy tables as text, for the tables of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from mfdiag.numbers import significant
from mfdiag.reporting.sentences import is_measurable
from mfdiag.tables.schema import MEASURED

__all__ = ["TextTable", "measured_rows"]

_NOT_KEYS = ("run", "checkpoint_sha256", *(column.name for column in MEASURED))
_SUBJECT = ("dataset", "checkpoint", "step")  # first, if they differ
_MOST_DIGITS = 4  # of a key, such as a bound of a bin


class TextTable(NamedTuple):
    """A table of text.

    Attributes:
        name: Unique within the report.
        title: What it holds, a few words.
        note: A sentence about its rows, or "".
        columns: Headings.
        rows: Cells, as many per row as headings.
        keys: How many of the leading columns say which row it is; the others are numbers and a status.
    """

    name: str
    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    keys: int


def measured_rows(name: str, title: str, frame: pd.DataFrame, most: int) -> TextTable:
    """The keys that differ, quantity, value, interval and status of each row of a tidy table.

    Args:
        name: Name of the result, unique within a report.
        title: What it holds.
        frame: The tidy rows.
        most: How many rows to show.

    Returns:
        The table of text; its note says how many rows are left out.
    """
    shown = frame.head(most)
    keys = [key for key in frame.columns if key not in _NOT_KEYS and shown[key].astype(str).nunique() > 1]
    keys.sort(key=lambda key: key not in _SUBJECT)
    cells = [
        [*(_text(row[key]) for key in keys), row["quantity"], *_interval(row), _status(row)]
        for row in shown.to_dict("records")
    ]
    note = f"The first {most:,} of {len(frame):,} rows; the table holds all." if len(frame) > most else ""
    columns = [*keys, "quantity", "value", "95 % low", "95 % high", "status"]
    return TextTable(name, title, note, [column.replace("_", " ") for column in columns], cells, len(keys) + 1)


def _interval(row: Mapping[Any, Any]) -> list[str]:
    return ["" if pd.isna(row[key]) else significant(row[key]) for key in ("value", "ci_low", "ci_high")]


def _status(row: Mapping[Any, Any]) -> str:
    """Why the number should not be trusted; an interval that says nothing is marked whatever its status."""
    if row["status"] == "ok":
        return "" if is_measurable(row) else "not measurable"
    return str(row["status"])


def _text(value: Any) -> str:
    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:.{_MOST_DIGITS}g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
