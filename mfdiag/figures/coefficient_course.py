"""How the optimal tangent coefficient and the critical batch change in training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mfdiag.figures._base import FigureSpec
from mfdiag.figures._by_step import courses_of, draw_by_step
from mfdiag.figures._style import styled
from mfdiag.tables.selection import of_quantity, overall

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURE", "draw", "rows"]

_LABELS = {"optimum": "optimal tangent coefficient β*", "critical_batch": "critical batch n₀, samples"}


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `coefficient` with tangent optima and critical batches, of runs with at least three steps."""
    optima = overall(of_quantity(frame, *_LABELS))
    optima = optima[(optima["form"] == "gradient") & (optima["role"] == "tangent") & optima["batch_size"].isna()]
    return courses_of(optima)


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """A panel for each quantity; `frame` is table `coefficient`. Raises InputError where there is nothing to draw."""
    return draw_by_step(rows(frame), _LABELS, "Optimal tangent coefficient in the course of training")


FIGURE = FigureSpec(
    "coefficient_course",
    "coefficient",
    rows,
    draw,
    says="the optimal beta and the batch size that halves it, against the training step; needs three checkpoints of a "
    "run",
    question="remedies",
)
