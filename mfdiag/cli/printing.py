"""Results on stdout: the sentences that matter and a table that fits the terminal, or every row as CSV or JSON."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.table import Table

from mfdiag.errors import printable
from mfdiag.measures.parts.concentration import largest_samples
from mfdiag.measures.parts.summary import Summarize, Summary, summaries
from mfdiag.numbers import percent, plain
from mfdiag.reporting.findings import headline, statements
from mfdiag.reporting.rows import TextTable
from mfdiag.reporting.subjects import overview

__all__ = ["PlainConsole", "json_for_terminals", "print_outcome"]

_UNLIMITED = 1000  # columns, to measure a table
_MOST_LINES = 25  # of a run, with the two that say where tables and figures are
_FILE_LINES = 2
_NOTE_LINES = 2  # of what is left out
_WIDEST_TEXT = 100  # columns of a sentence
_FEWEST_ROWS = 6  # of the first table, before a second one has more than the fewest
_SECOND_ROWS = (3, 5)  # fewest and most rows of a second table
_DOUBT = "status"  # the column that always stays beside a value
_LONGEST_NAME = 34  # letters of a checkpoint among others


class PlainConsole(Console):
    """A console that replaces control characters in all that it prints: names in files may hold some."""

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of anything, without control characters of its text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


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
        format: "table" for sentences and a summary, "csv" or "json" for every row.
        say: Receives a note where there is no summary, or where rows or columns are left out.
    """
    frame = frames[name]
    if format == "csv":
        _for_spreadsheets(frame).to_csv(sys.stdout, index=False)
        return
    if format == "json":
        sys.stdout.write(_json(frame) + "\n")
        return
    by_subject = summaries(name, frame, summarize)
    if not by_subject:
        say("no row is over all times, so there is no summary: see the figures, or pass --format csv.")
        return
    if len(by_subject) == 1:
        title, (parts,) = by_subject[0][0].title, by_subject
        parts = [*parts, *([_largest_samples(frames["samples"])] if "samples" in frames else [])]
    else:
        title = f"{name} of {len(by_subject)} models and settings; in words, the last one:"
        parts = [_of_subjects(overview({name: frame}, settings=True))]
    width = _width()
    sentences = _sentences(frames, width)
    room = _MOST_LINES - _FILE_LINES - _NOTE_LINES - 1
    if len(by_subject) > 1 and len(parts[0].rows) + _head_lines(parts[0]) + len(sentences) > room:
        title, sentences, room = title.partition(";")[0], [], room + 1  # a row for each of them says more
    print(printable("\n".join([title, *sentences])))
    _print_summaries([replace(parts[0], title=""), *parts[1:]], room - len(sentences), width, say)


def _width() -> int:
    """Columns of the terminal; on a pipe those of COLUMNS, or 80."""
    console = PlainConsole(file=sys.stdout)
    return console.width if console.is_terminal else int(os.environ.get("COLUMNS") or 80)


def _sentences(frames: Mapping[str, pd.DataFrame], width: int) -> list[str]:
    """Lines of the sentences that matter about the last model."""
    answers = statements(frames)
    sentences = headline(answers[-1].statements) if answers else []
    return [line for text in sentences for line in textwrap.wrap(text, min(width, _WIDEST_TEXT))]


def _print_summaries(parts: Sequence[Summary], room: int, width: int, say: Callable[[str], None]) -> None:
    """Prints tables in so many lines and columns, and says what is left out."""
    room -= sum(map(_head_lines, parts))
    fewest, most = _SECOND_ROWS
    counts = [min(len(part.rows), fewest) for part in parts]
    counts[0] = min(len(parts[0].rows), max(fewest, min(_FEWEST_ROWS, room - sum(counts[1:]))))
    for k, limit in (*((k, most) for k in range(1, len(parts))), (0, room)):
        counts[k] = max(counts[k], min(len(parts[k].rows), limit, room - sum(counts) + counts[k]))
    rows_left_out, columns_left_out = 0, []
    for part, count in zip(parts, counts, strict=True):
        rows_left_out += len(part.rows) - count
        columns_left_out += _print_summary(_without_empty(replace(part, rows=_chosen(part, count))), width)
    where = "--format csv prints everything."
    if columns_left_out:
        say(f"{', '.join(columns_left_out)} left out: the terminal has {width} columns; {where}")
    elif rows_left_out:
        say(f"{rows_left_out} more row{'s' * (rows_left_out != 1)}; {where}")


def _head_lines(part: Summary) -> int:
    """Lines of a table that are no rows: title, headings, rule and note."""
    headings = 1 + max(column.count("\n") for column in part.columns)
    return headings + (not part.dense) + bool(part.title) + bool(part.note)


def _chosen(part: Summary, count: int) -> Sequence[Sequence[str]]:
    """So many rows: evenly spaced ones of a grid, else the first ones."""
    if not part.spread or count >= len(part.rows):
        return part.rows[:count]
    return [part.rows[k] for k in np.linspace(0, len(part.rows) - 1, count).round().astype(int)]


def _without_empty(part: Summary) -> Summary:
    """The table without optional columns that no shown row fills."""
    filled = [k for k, name in enumerate(part.columns) if name not in part.optional or any(row[k] for row in part.rows)]
    columns, rows = [part.columns[k] for k in filled], [[row[k] for k in filled] for row in part.rows]
    return replace(part, columns=columns, rows=rows)


def _print_summary(summary: Summary, width: int) -> list[str]:
    """Prints a summary and returns the columns that do not fit: optional ones first, then the last ones."""
    wide = PlainConsole(file=sys.stdout, width=_UNLIMITED, soft_wrap=True)
    left_out: list[str] = []
    table = _rich_table(summary, left_out)
    if wide.measure(table).maximum > width:
        summary = replace(summary, dense=True)
        table = _rich_table(summary, left_out)
    candidates = [name for name in summary.optional if name in summary.columns]
    candidates += [name for name in reversed(summary.columns[1:]) if name not in (*candidates, _DOUBT)]
    for column in candidates:
        if wide.measure(table).maximum <= width:
            break
        left_out.append(column)
        table = _rich_table(summary, left_out)
    wide.print(table)
    if summary.note:
        wide.print(textwrap.shorten(summary.note, width, placeholder=" ..."))
    return left_out


def _rich_table(summary: Summary, left_out: list[str]) -> Table:
    title = summary.title or None
    lines = None if summary.dense else box.SIMPLE_HEAD
    table = Table(title=title, title_justify="left", box=lines, show_edge=False, pad_edge=False)
    shown = [k for k, column in enumerate(summary.columns) if column not in left_out]
    for k in shown:
        column = summary.columns[k]
        table.add_column(column, justify="right" if column in summary.numeric else "left")
    for row in summary.rows:
        table.add_row(*(row[k] for k in shown))
    return table


def _of_subjects(table: TextTable) -> Summary:
    """A row for each model and setting; names of checkpoints without what they have in common."""
    place = table.columns.index("checkpoint")
    names = [row[place] for row in table.rows]
    folders = [name.rpartition("/")[0].split("/") for name in names]
    shared = list(takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False)))
    start = sum(len(parts[0]) + 1 for parts in shared)
    end = "/model.safetensors" if all(name.endswith("/model.safetensors") for name in names) else ".safetensors"
    rows = []
    for row in table.rows:
        name = row[place][start:].removesuffix(end)
        short = name if len(name) <= _LONGEST_NAME else f"...{name[3 - _LONGEST_NAME :]}"
        rows.append([*row[:place], short, *row[place + 1 :]])
    same = [k for k in range(table.keys) if len({row[k] for row in rows}) == 1 and k != place] if len(rows) > 1 else []
    kept_columns = [k for k in range(len(table.columns)) if k not in same and table.columns[k] != "hash"]
    columns = [table.columns[k] for k in kept_columns]
    cells = [[row[k] for k in kept_columns] for row in rows]
    numeric = columns[len(columns) - len(table.columns) + table.keys :]
    return Summary("", columns, cells, numeric=numeric, dense=True)


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
    return json_for_terminals(json.dumps(plain.to_dict("records"), indent=1, ensure_ascii=False, allow_nan=False))


def json_for_terminals(text: str) -> str:
    """JSON with what terminals obey as escapes; JSON itself escapes what lies below a space."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def _for_spreadsheets(frame: pd.DataFrame) -> pd.DataFrame:
    """Text that a spreadsheet would run as a formula begins with an apostrophe, and has no control characters."""

    def plain_text(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text = printable(value)
        return f"'{text}" if text.startswith(("=", "+", "-", "@", "\N{REPLACEMENT CHARACTER}")) else text

    text = frame.select_dtypes(["object", "string"]).columns
    return frame.assign(**{name: frame[name].map(plain_text) for name in text})
