"""What was measured: the data sets and checkpoints of a folder, a row each, with their main numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import pandas as pd

from mfdiag.numbers import percent, with_interval
from mfdiag.reporting.rows import TextTable
from mfdiag.reporting.sentences import is_measurable
from mfdiag.tables.selection import of_quantity, overall

__all__ = ["overview"]

_SUBJECT = ["dataset", "checkpoint", "step"]
_HASH_LETTERS = 8


class _Column(NamedTuple):
    """A number of each subject: the first row of a table with these values."""

    heading: str
    table: str
    quantity: str
    values: Mapping[str, object] = {}
    write: Callable[[float], str] | None = None


_TANGENT = {"form": "gradient", "role": "tangent"}
_COLUMNS = (
    _Column("gradient variance", "variance", "variance"),
    _Column("top 1 % share", "variance", "top1_share", write=percent),
    _Column("noise scale", "variance", "noise_scale"),
    _Column("β*", "coefficient", "optimum", _TANGENT),
    _Column("n₀", "coefficient", "critical_batch", _TANGENT),
    _Column("sliced Wasserstein", "quality", "value", {"metric": "sliced_wasserstein"}),
)


def overview(tables: Mapping[str, pd.DataFrame]) -> TextTable:
    """A row for each data set, checkpoint and step of the tables; only columns that something fills."""
    subjects = pd.concat([frame[[*_SUBJECT, "checkpoint_sha256"]] for frame in tables.values()])
    subjects = subjects.drop_duplicates(_SUBJECT).sort_values(["dataset", "step"], kind="stable", na_position="first")
    columns = {
        "hash": subjects["checkpoint_sha256"].map(lambda text: str(text)[:_HASH_LETTERS] if pd.notna(text) else "")
    }
    for column in _COLUMNS:
        values = _values(tables.get(column.table), column)
        columns[column.heading] = pd.Series(
            [values.get(key, "") for key in _keys(subjects)], index=subjects.index, dtype=object
        )
    filled = {heading: texts for heading, texts in columns.items() if texts.astype(bool).any()}
    rows = (
        [
            [dataset, checkpoint, "" if step == "" else f"{int(step):,}", *texts]
            for (dataset, checkpoint, step), texts in zip(
                _keys(subjects), zip(*filled.values(), strict=True), strict=True
            )
        ]
        if filled
        else [[dataset, checkpoint, step and f"{int(step):,}"] for dataset, checkpoint, step in _keys(subjects)]
    )
    title = f"{len(rows):,} checkpoint{'' if len(rows) == 1 else 's'}"
    doubtful = any("~" in text for row in rows for text in row)
    note = "~ marks numbers to treat with caution" if doubtful else ""
    return TextTable("subjects", title, note, ["data set", "checkpoint", "step", *filled], rows, 3)


def _keys(frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    texts = frame[_SUBJECT].astype(object).where(frame[_SUBJECT].notna(), "").astype(str)
    return list(texts.itertuples(index=False, name=None))


def _values(frame: pd.DataFrame | None, column: _Column) -> dict[tuple[str, str, str], str]:
    """The number of each subject as text; `not measurable` where its interval says nothing."""
    if frame is None:
        return {}
    rows = overall(of_quantity(frame, column.quantity))
    for name, value in column.values.items():
        rows = rows[rows[name] == value]
    texts = [_number(row, column) for _, row in rows.iterrows()]
    return dict(zip(_keys(rows)[::-1], texts[::-1], strict=True))  # the first row of each counts


def _number(row: pd.Series, column: _Column) -> str:
    if not is_measurable(row):
        return "not measurable"
    doubt = "" if row["status"] in ("ok", "outside_unit_interval") else "~ "
    return doubt + with_interval(row["value"], row["ci_low"], row["ci_high"], column.write)
