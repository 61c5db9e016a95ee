"""Gradient variance of a grid of models, against the coefficient they were trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mfdiag.figures._base import FigureSpec
from mfdiag.figures._by_dataset import draw_by_dataset
from mfdiag.figures._select import nonempty
from mfdiag.figures._style import styled
from mfdiag.tables.selection import of_quantity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURE", "draw", "rows"]

_LABELS = {"variance": "trained and measured at β", "variance_at_0": "trained at β = 0, measured at β"}


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `grid` with gradient variances."""
    return of_quantity(frame, *_LABELS)


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """A panel for each data set: variance of models trained at each beta, and of those trained at 0.

    `frame` is table `grid`. Raises InputError where there is nothing to draw.
    """
    variances = nonempty(rows(frame))
    series = {label: variances[variances["quantity"] == quantity] for quantity, label in _LABELS.items()}
    return draw_by_dataset(series, "variance,\n(loss/parameter)²", "Gradient variance against β")


FIGURE = FigureSpec(
    "grid_variance",
    "grid",
    rows,
    draw,
    says="gradient variance against the beta of training, by data set",
    question="remedies",
)
