"""Parts of sentences about tables: numbers with their intervals, or that they are not measurable."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from mfdiag.numbers import percent, with_interval
from mfdiag.tables.measurable import is_measurable

__all__ = [
    "QUESTIONS",
    "Answers",
    "Findings",
    "Statement",
    "change",
    "is_measurable",
    "not_measurable",
    "number",
]

QUESTIONS = ("noise", "where", "remedies", "cost", "samples")
"""What readers of a report ask, in the order of its sections."""

_AS_FACTOR = 10  # factor from which a change is no longer given in percent
_TRUSTED = ("ok", "outside_unit_interval")  # statuses that are not repeated beside the number


class Findings(NamedTuple):
    """Sentences about one subject: a model with its settings, or a data set of a grid."""

    subject: str
    sentences: list[str]


class Statement(NamedTuple):
    """A sentence or more about one subject.

    `question` is the one that it answers, one of QUESTIONS. `figures` are those that show it, and `table` holds its
    numbers. It is not `measurable` if it says of its main number that more samples are needed.
    """

    question: str
    text: str
    figures: tuple[str, ...] = ()
    measurable: bool = True
    table: str = ""


class Answers(NamedTuple):
    """Statements about one subject: a model with its settings, or a data set of a grid."""

    subject: str
    statements: list[Statement]
    dataset: str


def number(row: pd.Series, write: Callable[[float], str] | None = None) -> str:
    """`1.15 [1.09, 1.22]`, with its status unless that is trusted; `write` as in `numbers.with_interval`."""
    return with_interval(row["value"], row["ci_low"], row["ci_high"], write) + _status(row)


def _status(row: pd.Series) -> str:
    return "" if row["status"] in _TRUSTED else f" ({row['status']})"


def not_measurable(row: pd.Series, unit: str = "sample") -> str:
    """`not measurable with 4,096 samples`; `unit` is what the row's n_samples counts."""
    count = int(row["n_samples"])
    return f"not measurable with {count:,} {unit}{'' if count == 1 else 's'}{_status(row)}"


def change(row: pd.Series, subject: str) -> str:
    """`lowers the loss by 38 % [21 %, 48 %]`, for a row whose value is the ratio of `subject` before to after."""
    value, low, high = (float(row[name]) for name in ("value", "ci_low", "ci_high"))
    lowers = value >= 1
    if not lowers:
        value, low, high = 1 / value, 1 / high, 1 / low
    if value >= _AS_FACTOR:
        return f"{'divides' if lowers else 'multiplies'} {subject} by {with_interval(value, low, high)}{_status(row)}"
    share, least, most = (1 - 1 / factor if lowers else factor - 1 for factor in (value, low, high))
    return f"{'lowers' if lowers else 'raises'} {subject} by {with_interval(share, least, most, percent)}{_status(row)}"
