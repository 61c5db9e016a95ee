"""What the terminal shows of a table: a few columns of text, most important first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mfdiag.numbers import plain, with_interval
from mfdiag.tables.measurable import is_measurable
from mfdiag.tables.selection import overall

__all__ = ["CAUTION", "Summarize", "Summary", "estimate_text", "plain_summary", "summaries"]

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
        spread: Whether rows of a grid stand for those between them, so that a few of them, evenly spaced, are shown
            where there is no room for all. Else the first ones are.
        dense: Whether to leave out the rule below the headings.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Collection[str] = ()
    optional: Sequence[str] = ()
    note: str = ""
    spread: bool = False
    dense: bool = False


Summarize = Callable[[str, pd.DataFrame], list[Summary]]
"""(title, rows of one model and setting) -> summaries."""


def summaries(name: str, frame: pd.DataFrame, summarize: Summarize | None = None) -> list[list[Summary]]:
    """Summaries of the rows over the whole network and all times.

    Args:
        name: Name of the table.
        frame: Its rows.
        summarize: Makes the summaries of one model; None shows one line per row.

    Returns:
        For each model and setting, in the order of the rows, at least one summary.
    """
    rows = overall(frame)
    settings = [key for key in _SETTINGS if rows[key].nunique(dropna=False) > 1]
    made: list[list[Summary]] = []
    for _, part in rows.groupby(["checkpoint", "step", *settings], dropna=False, sort=False):
        head = part.iloc[0]
        step = [] if pd.isna(head["step"]) else [f"step {head['step']:,}"]
        title = ", ".join([f"{name} of {head['checkpoint']}", *step, *(f"{key} {head[key]}" for key in settings)])
        made.append((summarize or plain_summary)(title, part))
    return made


CAUTION = "~ marks numbers to treat with caution"


def estimate_text(row: Mapping[Any, Any], write: Callable[[float], str] | None = None) -> str:
    """A value with its interval, or `not measurable` where that says nothing.

    Args:
        row: A tidy row.
        write: Writes each number, as in `numbers.with_interval`.

    Returns:
        `654 [565, 758]`, after ~ where the status is not ok.
    """
    if not is_measurable(row):
        return "not measurable"
    doubt = "" if row["status"] in ("ok", "outside_unit_interval") else "~ "
    return doubt + with_interval(row["value"], row["ci_low"], row["ci_high"], write)


def plain_summary(title: str, rows: pd.DataFrame) -> list[Summary]:
    """One line per row: the keys that differ, quantity, value, interval, status."""
    keys = [key for key in _KEYS if key in rows and rows[key].nunique() > 1]
    lines = []
    for row in rows.to_dict("records"):
        names = ["" if pd.isna(row[key]) else str(row[key]) for key in keys]
        interval = "" if pd.isna(row["ci_low"]) else f"{plain(row['ci_low'])} … {plain(row['ci_high'])}"
        status = row["status"]
        if status == "ok":
            status = "" if is_measurable(row) else "not measurable"
        lines.append((*names, row["quantity"], plain(row["value"]), interval, status))
    columns = (*keys, "quantity", "value", "95 % interval", "status")
    return [
        Summary(title, columns, lines, numeric=("value", "95 % interval"), optional=("kappa_kind", "95 % interval"))
    ]
