"""How much of the gradient a few samples carry: Lorenz curves of squared norms (docs/theory.md#concentration)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mfdiag.figures._base import FigureSpec
from mfdiag.figures._select import select
from mfdiag.figures._style import GRAY, LINES, Line, finish, grid_of_axes, heading, styled
from mfdiag.numbers import percent
from mfdiag.tables.selection import of_quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURE", "draw", "lorenz", "rows"]

_TOP = 0.99  # the top 1 % lie beyond
_BEND = 0.9  # the curve bends beyond it, so that half of its points are drawn there
_POINTS = 400


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `samples` with squared gradient norms."""
    return of_quantity(frame, "grad_norm2")


def lorenz(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fractions of samples [N+1] and of their sum [N+1], from the smallest sample on; both run from 0 to 1.

    `values` [N] must be non-negative with a positive sum.
    """
    cumulative = np.concatenate([[0.0], np.cumsum(np.sort(values))])
    return np.linspace(0, 1, len(cumulative)), cumulative / cumulative[-1]


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One panel per checkpoint, one line per estimator; the legend gives the share of the top 1 % of samples.

    `frame` is table `samples`. Raises InputError where there is nothing to draw.
    """
    selection = select(rows(frame), within=("estimator", "proxy"))
    figure, axes = grid_of_axes(1, len(selection.items), 4.4 if len(selection.items) == 1 else 3.3, 4.0)
    omitted = 0
    for (label, part), panel in zip(selection.items, axes[0], strict=True):
        curves = select(part, limit=len(part)).items
        omitted = max(omitted, len(curves) - len(LINES))
        for (name, samples), line in zip(curves, LINES, strict=False):
            norms = samples["value"].to_numpy(dtype=float)
            _draw_lorenz(panel, norms, line, name or str(samples["estimator"].iloc[0]))
        panel.plot([0, 1], [0, 1], color=GRAY, linewidth=0.8, label="equal norms")
        panel.set(xlim=(0, 1.01), ylim=(0, 1.01), aspect="equal", xlabel="fraction of samples, smallest norm first")
        heading(panel, label)
    axes[0, 0].set_ylabel("fraction of the squared gradient norm")
    return finish(
        figure,
        "Concentration of the gradient on few samples",
        selection.context,
        "Markers: all samples but the largest 1 %",
        f"{omitted} more estimators not shown" if omitted > 0 else "",
        selection.note,
    )


def _draw_lorenz(axes: Axes, norms: np.ndarray, line: Line, name: str) -> None:
    x, y = lorenz(norms)
    below = np.interp(_TOP, x, y)
    shown = np.unique(np.concatenate([np.linspace(0, _BEND, _POINTS), np.linspace(_BEND, 1, _POINTS), [_TOP]]))
    axes.plot(
        shown,
        np.interp(shown, x, y),
        color=line.color,
        linestyle=line.dashes,
        label=f"{name}: top 1 % carry {percent(1 - below)}",
    )
    axes.plot(_TOP, below, line.marker, color=line.color, markerfacecolor="white", zorder=4)


FIGURE = FigureSpec(
    "concentration",
    "samples",
    rows,
    draw,
    says="the fraction of the squared gradient norm that the largest samples carry",
    question="noise",
)
