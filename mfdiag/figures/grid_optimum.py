"""The predicted coefficient beta*_n for several n, beside the trained beta with the best samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mfdiag.figures._base import FigureSpec
from mfdiag.figures._select import nonempty, shortened
from mfdiag.figures._style import GRAY, LINES, Line, finish, grid_of_axes, heading, styled
from mfdiag.tables.selection import of_quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURE", "draw", "rows"]

_FARTHEST = (-1.0, 3.0)  # beta; what lies beyond is drawn at the edge
_BEST = (LINES[3], Line(GRAY, "-", "s"))
_METRIC = "sliced_wasserstein"


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `grid` with optima and best betas, where there are both."""
    optima = of_quantity(frame, "optimum", "best_beta")
    is_best = optima["quantity"] == "best_beta"
    optima = optima[~is_best | ((optima["metric"] == _METRIC) & (optima["nfe"] == optima["nfe"].min()))]
    return optima if optima["quantity"].nunique() == 2 else optima.iloc[:0]


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One row for each data set: a mark for beta*_n of each n, and above them the best beta of each set of weights.

    `frame` is table `grid`. Raises InputError where there is nothing to draw.
    """
    optima = nonempty(rows(frame))
    datasets = list(dict.fromkeys(optima["dataset"]))
    figure, axes = grid_of_axes(1, 1, 7.0, max(1.9, 0.9 + 0.5 * len(datasets)))
    panel: Axes = axes[0, 0]
    predicted, best = (optima[optima["quantity"] == name] for name in ("optimum", "best_beta"))
    sizes = sorted(set(predicted["batch_size"]))
    series = [(f"predicted, n = {n:,}", predicted[predicted["batch_size"] == n]) for n in sizes]
    offsets = np.linspace(-0.3, 0.3, len(series) + best["weights"].nunique())
    for (label, part), line, offset in zip(series, LINES, offsets, strict=False):
        _draw_marks(panel, part, part["dataset"].map(datasets.index) + offset, line, label, fill="white")
    for (weights, part), line, offset in zip(best.groupby("weights"), _BEST, offsets[len(series) :], strict=False):
        place = part["dataset"].map(datasets.index) + offset
        _draw_marks(panel, part, place, line, f"best samples, {weights} weights", fill=line.color)
    panel.set_yticks(range(len(datasets)), [shortened(name) for name in datasets])
    panel.set_ylim(len(datasets) - 0.5, -0.5)
    for edge in (0, 1):
        panel.axvline(edge, color=GRAY, linewidth=0.8)
    panel.set_xlabel("β")
    heading(panel, "", columns=2)
    return finish(
        figure,
        "Predicted and best tangent coefficient β",
        "Open marks: optimum β*ₙ at batch size n, predicted by models trained at β = 0, with 95 % intervals over seeds",
        "Filled marks: trained β with the lowest sliced Wasserstein distance; line: range of β that does not differ "
        "significantly from it (paired t test)",
    )


def _draw_marks(axes: Axes, part: pd.DataFrame, place: pd.Series, line: Line, label: str, *, fill: str) -> None:
    low, high = (part[name].clip(*_FARTHEST) for name in ("ci_low", "ci_high"))
    axes.hlines(place, low, high, color=line.color, linewidth=1.2)
    value = part["value"].clip(*_FARTHEST)
    axes.plot(value, place, line.marker, color=line.color, markerfacecolor=fill, label=label, zorder=3)


FIGURE = FigureSpec(
    "grid_optimum",
    "grid",
    rows,
    draw,
    says="the best trained beta, and the one predicted for several batch sizes",
    question="samples",
)
