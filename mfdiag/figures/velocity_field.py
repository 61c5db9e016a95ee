"""Divergence of the network's velocity field against t, and how much it rotates (docs/theory.md#velocity-jacobian)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mfdiag.figures._base import FigureSpec
from mfdiag.figures._select import select
from mfdiag.figures._style import GRAY, LINES, estimate, finish, from_zero, grid_of_axes, styled
from mfdiag.tables.selection import by_time, midpoint, of_quantity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURE", "draw", "rows"]

_LABELS = {"divergence": "divergence of u(x, t, t)", "antisymmetric_share": "antisymmetric share"}


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `variance` about the velocity field's Jacobian, by t alone."""
    return by_time(of_quantity(frame, *_LABELS), "t").sort_values("t_low", kind="stable")


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One column per checkpoint, divergence above and antisymmetric share below, at the centers of the t bins.

    `frame` is table `variance`. Raises InputError where there is nothing to draw.
    """
    from matplotlib.ticker import PercentFormatter

    selection = select(rows(frame))
    width = 4.6 if len(selection.items) == 1 else 3.3
    figure, axes = grid_of_axes(len(_LABELS), len(selection.items), width, 2.3, sharey="row")
    for (label, part), column in zip(selection.items, axes.T, strict=True):
        for (quantity, name), line, panel in zip(_LABELS.items(), LINES, column, strict=False):
            curve = part[part["quantity"] == quantity]
            estimate(panel, midpoint(curve, "t"), curve, line, name)
            panel.set_xlim(0, 1)
        column[0].axhline(0, color=GRAY, linewidth=0.8)
        column[0].set_title(label, loc="left", fontweight="bold")
        column[1].set(xlabel="t")
        column[1].yaxis.set_major_formatter(PercentFormatter(1.0))
    from_zero(axes[1, 0])
    for panel, name in zip(axes[:, 0], _LABELS.values(), strict=True):
        panel.set_ylabel(name)
    figure.align_ylabels(axes[:, 0])
    return finish(
        figure,
        "Divergence and rotation of the velocity field",
        selection.context,
        "Points: centers of the bins of t. Bands: 95 % intervals",
        "The true field does not rotate if the noise is N(0, I) and independent of the data",
        selection.note,
    )


FIGURE = FigureSpec(
    "velocity_field",
    "variance",
    rows,
    draw,
    says="divergence and antisymmetric share of the velocity field's Jacobian against t",
    question="where",
)
