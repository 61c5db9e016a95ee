"""What was measured: the data sets and checkpoints of a folder, a row each, with their main numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from mfdiag.measures.parts.summary import CAUTION, estimate_text
from mfdiag.numbers import percent
from mfdiag.reporting.rows import TextTable
from mfdiag.tables.selection import of_quantity, overall

__all__ = ["overview"]

_SUBJECT = ["dataset", "checkpoint", "step"]
_SETTINGS = ("proxy", "weighting", "times", "seed")
_HASH_LETTERS = 8


class _Column(NamedTuple):
    """A number of each subject: the first row of a table with these values, unless another table says more."""

    heading: str
    table: str
    quantity: str
    values: Mapping[str, object] = {}
    write: Callable[[float], str] | None = None
    unless: str = ""


_TANGENT = {"form": "gradient", "role": "tangent"}
_AT_0, _AT_1 = ({"space": "gradient", "beta": beta, "gamma": 0.0} for beta in (0.0, 1.0))
_COLUMNS = (
    _Column("gradient variance", "variance", "variance"),
    _Column("variance at β = 0", "sweep", "variance", _AT_0, unless="variance"),
    _Column("variance at β = 1", "sweep", "variance", _AT_1, unless="variance"),
    _Column("top 1 % share", "variance", "top1_share", write=percent),
    _Column("noise scale", "variance", "noise_scale"),
    _Column("β*", "coefficient", "optimum", _TANGENT),
    _Column("n₀", "coefficient", "critical_batch", _TANGENT),
    _Column("EMA tangent, variance ratio", "compare", "variance_ratio", {"estimator": "ema_tangent"}),
    _Column("gain of the new density", "times", "measured_gain"),
    _Column("sliced Wasserstein", "quality", "value", {"metric": "sliced_wasserstein"}),
)


def overview(tables: Mapping[str, pd.DataFrame], *, settings: bool = False) -> TextTable:
    """The data sets, checkpoints and steps of the tables, with the main numbers of each.

    Args:
        tables: Tidy frames by name.
        settings: Whether models measured in several ways, such as with two proxies, have a row for each.

    Returns:
        A row for each; only columns that something fills.
    """
    keys = [*_SUBJECT]
    if settings:
        keys += [name for name in _SETTINGS if any(frame[name].nunique() > 1 for frame in tables.values())]
    subjects = pd.concat([overall(frame)[[*keys, "checkpoint_sha256"]] for frame in _of_checkpoints(tables)])
    subjects = subjects.drop_duplicates(keys).sort_values(["dataset", "step"], kind="stable", na_position="first")
    names = _names(subjects, keys)
    columns = {_heading(key): [name[k] for name in names] for k, key in enumerate(keys)}
    columns["hash"] = ["" if pd.isna(text) else str(text)[:_HASH_LETTERS] for text in subjects["checkpoint_sha256"]]
    for column in _COLUMNS:
        if column.table in tables and column.unless not in tables:
            values = _values(tables[column.table], column, keys)
            columns[column.heading] = [values.get(name, "") for name in names]
    filled = {heading: texts for k, (heading, texts) in enumerate(columns.items()) if k < len(_SUBJECT) or any(texts)}
    rows = [list(row) for row in zip(*filled.values(), strict=True)]
    title = f"{len(rows):,} checkpoint{'' if len(rows) == 1 else 's'}"
    doubtful = any("~" in text for row in rows for text in row)
    note = CAUTION if doubtful else ""
    return TextTable("subjects", title, note, list(filled), rows, len(keys))


def _of_checkpoints(tables: Mapping[str, pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """The tables without rows that are no checkpoint: of logged steps the last, and no summary of a grid."""
    for name, frame in tables.items():
        if name == "training":
            last = frame.groupby(["dataset", "checkpoint"], dropna=False)["step"].transform("max")
            yield frame[frame["step"] == last]
        elif name != "grid" or len(tables) == 1:
            yield frame


def _heading(key: str) -> str:
    return "data set" if key == "dataset" else key


def _names(frame: pd.DataFrame, keys: Sequence[str]) -> list[tuple[str, ...]]:
    """What distinguishes each row, as text; steps with separated thousands."""
    texts = [
        ["" if pd.isna(value) else f"{value:,}" if key == "step" else str(value) for value in frame[key]]
        for key in keys
    ]
    return list(zip(*texts, strict=True))


def _values(frame: pd.DataFrame, column: _Column, keys: Sequence[str]) -> dict[tuple[str, ...], str]:
    """The number of each subject as text; `not measurable` where its interval says nothing."""
    rows = overall(of_quantity(frame, column.quantity))
    for name, value in column.values.items():
        rows = rows[rows[name] == value]
    texts = [estimate_text(row, column.write) for row in rows.to_dict("records")]
    return dict(zip(_names(rows, keys)[::-1], texts[::-1], strict=True))  # the first row of each counts
