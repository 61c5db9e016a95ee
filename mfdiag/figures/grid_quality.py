"""Sample quality of a grid of models, against the coefficient they were trained with."""

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

_METRIC = "sliced_wasserstein"


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `grid` with sliced Wasserstein distances at the fewest steps."""
    qualities = of_quantity(frame, "quality")
    qualities = qualities[qualities["metric"] == _METRIC]
    return qualities[qualities["nfe"] == qualities["nfe"].min()]


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """A panel for each data set: sliced Wasserstein-1 against the beta of training, a line for each set of weights.

    `frame` is table `grid`. Raises InputError where there is nothing to draw.
    """
    qualities = nonempty(rows(frame))
    series = {f"{weights} weights": part for weights, part in qualities.groupby("weights", sort=False)}
    steps = int(qualities["nfe"].iloc[0])
    title = f"Sample quality against β, {steps} step{'s' * (steps > 1)}"
    return draw_by_dataset(series, "sliced Wasserstein-1", title, "Lower is better")


FIGURE = FigureSpec(
    "grid_quality",
    "grid",
    rows,
    draw,
    says="sample quality against the beta of training, by data set",
    question="samples",
)
