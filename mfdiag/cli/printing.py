"""Results on stdout: summaries that fit the terminal, or every row as CSV or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from mfdiag.measures.parts.concentration import largest_samples
from mfdiag.measures.parts.summary import Summarize, Summary, summaries
from mfdiag.numbers import percent, plain

__all__ = ["print_outcome"]

_UNLIMITED = 1000  # columns on a pipe, where lines need not fit a screen


def print_outcome(
    name: str,
    frames: Mapping[str, pd.DataFrame],
    summarize: Summarize | None,
    format: str,
    say: Callable[[str], None],
) -> None:
    """Print the main table of a command.

    Args:
        name: Its name.
        frames: The command's tables by name.
        summarize: Makes the summaries of one model; None shows one line per row.
        format: "table" for a summary, "csv" or "json" for every row.
        say: Receives a note where there is no summary, or where columns are left out.
    """
    frame = frames[name]
    if format == "csv":
        frame.to_csv(sys.stdout, index=False)
        return
    if format == "json":
        sys.stdout.write(_json(frame) + "\n")
        return
    parts = summaries(name, frame, summarize)
    if not parts:
        say("no row is over all times, so there is no summary: see the figures, or pass --format csv.")
    elif "samples" in frames:
        parts.append(_largest_samples(frames["samples"]))
    for part in parts:
        _print_summary(part, say)


def _print_summary(summary: Summary, say: Callable[[str], None]) -> None:
    """Prints a summary, without optional columns that do not fit the terminal."""
    console = Console(file=sys.stdout)
    width = console.width if console.is_terminal else _UNLIMITED
    wide = Console(file=sys.stdout, width=_UNLIMITED, soft_wrap=True)
    left_out: list[str] = []
    table = _rich_table(summary, left_out)
    for column in summary.optional:
        if wide.measure(table).maximum <= width:
            break
        if column in summary.columns:
            left_out.append(column)
            table = _rich_table(summary, left_out)
    wide.print(table)
    if summary.note:
        wide.print(summary.note)
    if left_out:
        say(f"{', '.join(left_out)} left out: the terminal has {width} columns; --format csv prints everything.")


def _rich_table(summary: Summary, left_out: list[str]) -> Table:
    table = Table(title=summary.title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    shown = [k for k, column in enumerate(summary.columns) if column not in left_out]
    for k in shown:
        column = summary.columns[k]
        table.add_column(column, justify="right" if column in summary.numeric else "left")
    for row in summary.rows:
        table.add_row(*(row[k] for k in shown))
    return table


def _largest_samples(samples: pd.DataFrame) -> Summary:
    """A line per sample of largest |G|^2, with its share of the sum over all samples; from the table `samples`."""
    rows = largest_samples(samples)
    keys = [name for name in ("checkpoint", "step", "dataset", "proxy", "times") if rows[name].nunique() > 1]
    keys += ["estimator", "index", *([] if rows["label"].isna().all() else ["label"])]
    numbers = ("r", "t", "|G|^2", "share")
    lines = []
    for row in rows.to_dict("records"):
        names = ["" if pd.isna(row[k]) else str(row[k]) for k in keys]
        lines.append((*names, *(plain(row[k]) for k in ("r", "t", "value")), percent(row["share"])))
    return Summary("samples with the largest |G|^2", (*keys, *numbers), lines, numeric=numbers)


def _json(frame: pd.DataFrame) -> str:
    """All rows with all digits (pandas' own to_json rounds small numbers to zero); NaN and infinity become null."""
    plain = frame.astype(object).where(frame.notna() & ~frame.isin([np.inf, -np.inf]), None)
    return json.dumps(plain.to_dict("records"), indent=1, ensure_ascii=False, allow_nan=False)
