"""Divergence of the network's velocity field against t, and the share of its Jacobian that rotates."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mfdiag.figures.select import by_time, midpoint, of_quantity, select
from mfdiag.figures.style import GREY, LINES, estimate, finish, grid_of_axes, styled

__all__ = ["draw", "rows"]

_LABELS = {"divergence": "divergence of u(x, t, t)", "antisymmetric_share": "antisymmetric share"}


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `variance` this figure draws: numbers of the velocity field's Jacobian, by t alone."""
    return by_time(of_quantity(frame, *_LABELS), "t").sort_values("t_low", kind="stable")


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One column per checkpoint, divergence above and antisymmetric share below, at the centres of the t bins.

    `frame` is table `variance`. Raises InputError where there is nothing to draw.
    """
    chosen = select(rows(frame))
    width = 4.6 if len(chosen.items) == 1 else 3.3
    figure, axes = grid_of_axes(len(_LABELS), len(chosen.items), width, 2.3, sharey="row")
    for (label, part), column in zip(chosen.items, axes.T, strict=True):
        for (quantity, name), line, panel in zip(_LABELS.items(), LINES, column, strict=False):
            curve = part[part["quantity"] == quantity]
            estimate(panel, midpoint(curve, "t"), curve, line, name)
            panel.set_xlim(0, 1)
        column[0].axhline(0, color=GREY, linewidth=0.8)
        column[0].set_title(label, loc="left", fontweight="bold")
        column[1].set(xlabel="t", ylim=(0, None))
        column[1].yaxis.set_major_formatter(PercentFormatter(1.0))
    for panel, name in zip(axes[:, 0], _LABELS.values(), strict=True):
        panel.set_ylabel(name)
    return finish(
        figure,
        "Divergence and rotation of the velocity field",
        chosen.context,
        "Points: centres of the bins of t. Bands: 95 % intervals",
        "Where noise is N(0, I) and drawn apart from the data, the true field does not rotate",
        chosen.note,
    )
