"""The density of (r, t) with the lowest gradient variance beside the trained one (docs/theory.md#times-density)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mfdiag.figures._base import FigureSpec
from mfdiag.figures._cells import corners, draw_cell, has_room, side_of
from mfdiag.figures._select import select
from mfdiag.figures._style import finish, grid_of_axes, styled
from mfdiag.numbers import percent, with_interval
from mfdiag.tables.selection import of_quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

__all__ = ["FIGURE", "draw", "rows"]

_PANELS = {"trained_share": "trained", "drawn_share": "lowest variance"}
_STRIP = 0.11  # height of the band below the diagonal, which holds the pairs with r = t
_SIDE, _MARGIN = 2.6, 1.0  # inches: least side of a triangle, and what a panel needs around it


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `times` with shares of cells, and the gains of the caption."""
    shares = of_quantity(frame, *_PANELS, "predicted_gain", "measured_gain")
    return shares if shares["quantity"].isin(_PANELS).any() else shares.iloc[:0]


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """Two triangles per checkpoint, trained and new density; `frame` is table `times`.

    Each cell shows its share of the samples in percent; darker is more. The band below the diagonal holds the pairs
    with r = t. Raises InputError where there is nothing to draw.
    """
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    selection = select(rows(frame))
    shares = rows(frame).query("quantity in @_PANELS.keys()")
    side = side_of(shares["t_low"].nunique(), _SIDE)
    figure, axes = grid_of_axes(len(selection.items), 2, side + _MARGIN, side + _MARGIN)
    scale = ScalarMappable(Normalize(0, shares["value"].max()), mpl.colormaps["cividis_r"])
    gains = []
    for (label, part), panels in zip(selection.items, axes, strict=True):
        for (quantity, name), panel in zip(_PANELS.items(), panels, strict=True):
            for cell in part[part["quantity"] == quantity].to_dict("records"):
                _draw_share(panel, cell, scale, side)
            panel.set(xlim=(0, 1), ylim=(-_STRIP, 1), xlabel="r", ylabel="t", aspect="equal")
            panel.set_title(", ".join(filter(None, (label, name))), loc="left", fontweight="bold")
            panel.grid(False)
        predicted, measured = (_gain(part, kind) for kind in ("predicted", "measured"))
        subject = f"{label}: variance" if label else "Gradient variance"
        gains.append(f"{subject}, trained over new density: predicted {predicted}, measured {measured} on new samples")
    bar = figure.colorbar(scale, ax=axes, shrink=0.85, pad=0.02)
    bar.set_label("share of samples")
    return finish(
        figure,
        "Density of (r, t): trained, and with the lowest gradient variance",
        selection.context,
        *gains,
        "Numbers: share of samples in %. Band below the diagonal: pairs with r = t",
        selection.note,
    )


def _gain(part: pd.DataFrame, kind: str) -> str:
    row = part[part["quantity"] == f"{kind}_gain"].iloc[0]
    return with_interval(row["value"], row["ci_low"], row["ci_high"])


def _draw_share(axes: Axes, cell: dict, scale: ScalarMappable, side: float) -> None:
    low, high = cell["t_low"], cell["t_high"]
    if cell["pairs"] == "diagonal":
        outline = np.array([(low, low), (high, high), (high, high - _STRIP), (low, low - _STRIP)])
    else:
        outline = corners((cell["r_low"], cell["r_high"]), (low, high))
    color = scale.to_rgba(np.array([cell["value"]]))[0]
    share = percent(cell["value"])
    pairs = "r = t" if cell["pairs"] == "diagonal" else f"r in [{cell['r_low']:.3g}, {cell['r_high']:.3g}]"
    text = share.removesuffix(" %") if has_room(outline, side) else ""
    draw_cell(axes, outline, color, text, f"{pairs}, t in [{low:.3g}, {high:.3g}]: {share}")


FIGURE = FigureSpec(
    "time_density",
    "times",
    rows,
    draw,
    says="the density of (r, t) with the lowest gradient variance, the trained one, and the gain",
    question="remedies",
)
