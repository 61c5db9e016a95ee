"""How few samples carry the gradient: Lorenz curves of the per-sample squared gradient norm."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mfdiag.figures.select import of_quantity, select
from mfdiag.figures.style import GREY, LINES, finish, grid_of_axes, heading, share, styled

__all__ = ["draw", "lorenz", "rows"]

_POINTS = 400


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `samples` this figure draws: squared gradient norms."""
    return of_quantity(frame, "grad_norm2")


def lorenz(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of samples [N+1] and of their sum [N+1], from the smallest sample on; both run from 0 to 1.

    `values` [N] must be non-negative with a positive sum.
    """
    cumulative = np.concatenate([[0.0], np.cumsum(np.sort(values))])
    return np.linspace(0, 1, len(cumulative)), cumulative / cumulative[-1]


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One panel per checkpoint, one line per estimator; the legend gives the share of the top 1 % of samples.

    `frame` is table `samples`. Raises InputError where there is nothing to draw.
    """
    chosen = select(rows(frame), within=("estimator", "proxy"))
    figure, axes = grid_of_axes(1, len(chosen.items), 4.4 if len(chosen.items) == 1 else 3.3, 4.0)
    dropped = 0
    for (label, part), panel in zip(chosen.items, axes[0], strict=True):
        lines = select(part, limit=len(part))
        dropped = max(dropped, len(lines.items) - len(LINES))
        for (name, curve), line in zip(lines.items, LINES, strict=False):
            x, y = lorenz(curve["value"].to_numpy(dtype=float))
            top = 1 - np.interp(0.99, x, y)
            named = name or str(curve["estimator"].iloc[0])
            grid = np.unique(np.concatenate([np.linspace(0, 0.9, _POINTS), np.linspace(0.9, 1, _POINTS), [0.99]]))
            panel.plot(
                grid,
                np.interp(grid, x, y),
                color=line.color,
                linestyle=line.dashes,
                label=f"{named}: top 1 % carry {share(top)}",
            )
            panel.plot(0.99, 1 - top, line.marker, color=line.color, markerfacecolor="white", zorder=4)
        panel.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, label="equal norms")
        panel.set(xlim=(0, 1.01), ylim=(0, 1.01), aspect="equal", xlabel="share of samples, smallest norm first")
        heading(panel, label)
    axes[0, 0].set_ylabel("share of the squared gradient norms")
    return finish(
        figure,
        "Concentration of the gradient on few samples",
        chosen.context,
        "Markers: all but the top 1 % of samples",
        f"{dropped} further estimators not drawn" if dropped > 0 else "",
        chosen.note,
    )
