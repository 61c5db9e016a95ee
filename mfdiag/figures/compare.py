"""Variance and error of every estimator, relative to MeanFlow (docs/theory.md#family)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mfdiag.figures._base import FigureSpec
from mfdiag.figures._select import select
from mfdiag.figures._style import LINES, Line, finish, grid_of_axes, log_axis, styled
from mfdiag.tables.selection import of_quantity, overall

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURE", "draw", "rows"]

_RATIOS = {"variance_ratio": "total", "conditional_variance_ratio": "given xₜ"}


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `compare` with ratios to MeanFlow, of the whole network over all times."""
    return overall(of_quantity(frame, *_RATIOS, "mse_ratio"))


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """A row per estimator, in the order of variance; left variance ratios, right the ratio of MSE_n at three n.

    `frame` is table `compare`. Raises InputError where there is nothing to draw.
    """
    selection = select(rows(frame), within=("estimator",), limit=1)
    _, part = selection.items[0]
    variances = part[part["quantity"] == "variance_ratio"].sort_values("value", ascending=False)
    estimators = variances["estimator"].tolist()
    figure, axes = grid_of_axes(1, 2, 4.6, 0.8 + 0.26 * len(estimators), sharey=True)
    left, right = axes[0]
    for line, (quantity, label) in zip(LINES, _RATIOS.items(), strict=False):
        _draw_points(left, part[part["quantity"] == quantity], estimators, line, label)
    left.set(xlabel="variance relative to MeanFlow", yticks=range(len(estimators)), yticklabels=estimators)
    errors = part[part["quantity"] == "mse_ratio"]
    sizes = sorted(errors["batch_size"].unique())
    for line, n in zip(LINES, dict.fromkeys((sizes[0], sizes[len(sizes) // 2], sizes[-1])), strict=False):
        _draw_points(right, errors[errors["batch_size"] == n], estimators, line, f"n = {n:,}")
    right.set(xlabel="mean squared error at batch size n, relative to MeanFlow")
    for panel in axes[0]:
        panel.axvline(1, color="black", linewidth=0.8)
        log_axis(panel.xaxis)
        panel.grid(axis="y", visible=False)
        panel.set_ylim(-0.6, len(estimators) - 0.4)
        panel.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, borderaxespad=0.3)
    return finish(
        figure,
        "Estimators compared with MeanFlow",
        selection.context,
        "Lines: paired 95 % intervals. Estimates below zero are not shown",
        selection.note,
    )


def _draw_points(axes: Axes, ratios: pd.DataFrame, estimators: list[str], line: Line, label: str) -> None:
    points = ratios.set_index("estimator").reindex(estimators)
    points = points.where(points["value"] > 0)
    place, smallest = np.arange(len(estimators)), points["value"].min()
    axes.hlines(place, points["ci_low"].clip(lower=smallest / 3), points["ci_high"], color=line.color, linewidth=1.1)
    axes.plot(
        points["value"],
        place,
        linestyle="",
        marker=line.marker,
        color=line.color,
        markerfacecolor="white",
        label=label,
    )


FIGURE = FigureSpec(
    "compare",
    "compare",
    rows,
    draw,
    says="variance and mean squared error of every method, relative to MeanFlow",
    question="remedies",
)
