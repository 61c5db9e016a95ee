"""How noise changes in training: gradient variance, concentration and noise scale against the step."""

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

_LABELS = {
    "variance": "variance, (loss/parameter)²",
    "top1_share": "share of the largest 1 %",
    "noise_scale": "noise scale, samples",
}


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `variance` of its first estimator, of runs with at least three steps."""
    courses = overall(of_quantity(frame, *_LABELS))
    return courses_of(courses[courses["estimator"] == courses["estimator"].iloc[0]]) if len(courses) else courses


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """A panel for each quantity; `frame` is table `variance`. Raises InputError where there is nothing to draw."""
    return draw_by_step(rows(frame), _LABELS, "Noise in the course of training")


FIGURE = FigureSpec(
    "variance_course",
    "variance",
    rows,
    draw,
    says="gradient variance, concentration and noise scale against the training step; needs three checkpoints of a run",
    question="noise",
)
