"""What the terminal shows of a table: a few columns of text, most important first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import pandas as pd

from mfdiag.numbers import plain
from mfdiag.tables.selection import overall

__all__ = ["Summarize", "Summary", "plain_summary", "summaries"]

_KEYS = ("estimator", "form", "role", "kappa_kind", "batch_size")
_SETTINGS = ("dataset", "proxy", "times")


@dataclass(frozen=True)
class Summary:
    """A small table of text.

    Attributes:
        title: One line above it.
        columns: Headings.
        rows: Cells, as many per row as headings.
        numeric: Headings of columns that are aligned right.
        optional: Headings of columns that a narrow terminal may leave out, the first one first.
        note: One line below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Collection[str] = ()
    optional: Sequence[str] = ()
    note: str = ""


Summarize = Callable[[str, pd.DataFrame], list[Summary]]
"""(title, rows of one model and setting) -> summaries."""


def summaries(name: str, frame: pd.DataFrame, summarize: Summarize | None = None) -> list[Summary]:
    """Summaries of the rows over the whole network and all times.

    Args:
        name: Name of the table.
        frame: Its rows.
        summarize: Makes the summaries of one model; None shows one line per row.

    Returns:
        At least one summary for each model and setting, in the order of the rows.
    """
    rows = overall(frame)
    settings = [key for key in _SETTINGS if rows[key].nunique(dropna=False) > 1]
    made: list[Summary] = []
    for _, part in rows.groupby(["checkpoint", "step", *settings], dropna=False, sort=False):
        head = part.iloc[0]
        step = [] if pd.isna(head["step"]) else [f"step {head['step']:,}"]
        title = ", ".join([f"{name} of {head['checkpoint']}", *step, *(f"{key} {head[key]}" for key in settings)])
        made += (summarize or plain_summary)(title, part)
    return made


def plain_summary(title: str, rows: pd.DataFrame) -> list[Summary]:
    """One line per row: the keys that differ, quantity, value, interval, status."""
    keys = [key for key in _KEYS if key in rows and rows[key].nunique() > 1]
    lines = []
    for row in rows.to_dict("records"):
        names = ["" if pd.isna(row[key]) else str(row[key]) for key in keys]
        interval = "" if pd.isna(row["ci_low"]) else f"{plain(row['ci_low'])} … {plain(row['ci_high'])}"
        status = "" if row["status"] == "ok" else row["status"]
        lines.append((*names, row["quantity"], plain(row["value"]), interval, status))
    columns = (*keys, "quantity", "value", "95 % interval", "status")
    return [Summary(title, columns, lines, numeric=("value", "95 % interval"))]
