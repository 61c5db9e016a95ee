"""The density of (r, t) of least gradient variance beside the trained one, as shares of cells."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from mfdiag.figures.beta_map import corners
from mfdiag.figures.select import of_quantity, select
from mfdiag.figures.style import finish, grid_of_axes, number, styled

__all__ = ["draw", "rows"]

_PANELS = {"trained_share": "trained", "drawn_share": "least variance"}
_STRIP = 0.11  # how far below the line r = t its own cells are drawn
_EDGE = "#999999"
_LEAST_LEGIBLE = 3.0  # points


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `times` this figure draws: shares of cells, and the gains of its caption."""
    kept = of_quantity(frame, *_PANELS, "predicted_gain", "measured_gain")
    return kept if kept["quantity"].isin(_PANELS).any() else kept.iloc[:0]


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """Two triangles per checkpoint, trained and new density; `frame` is table `times`.

    Each cell has its share of the samples in percent, the darker the more; the band below the line r = t is the pairs
    on it. Raises InputError where there is nothing to draw.
    """
    chosen = select(rows(frame))
    figure, axes = grid_of_axes(len(chosen.items), 2, 4.0, 3.6)
    shares = frame.loc[frame["quantity"].isin(_PANELS), "value"]
    scale = ScalarMappable(Normalize(0, shares.max()), mpl.colormaps["cividis_r"])
    gains = []
    for (label, part), panels in zip(chosen.items, axes, strict=True):
        for (quantity, name), panel in zip(_PANELS.items(), panels, strict=True):
            for cell in part[part["quantity"] == quantity].to_dict("records"):
                _cell(panel, cell, scale)
            panel.set(xlim=(0, 1), ylim=(-_STRIP, 1), xlabel="r", ylabel="t", aspect="equal")
            panel.set_title(", ".join(filter(None, (label, name))), loc="left", fontweight="bold")
            panel.grid(False)
        told = (
            f"variance is divided by {_gain(part, 'predicted')} as predicted, by {_gain(part, 'measured')} as measured "
        )
        gains.append(f"{label + ', ' if label else 'Gradient '}{told}on fresh samples")
    bar = figure.colorbar(scale, ax=axes, shrink=0.85, pad=0.02)
    bar.set_label("share of samples")
    return finish(
        figure,
        "Density of (r, t): as trained, and for the least gradient variance",
        chosen.context,
        *gains,
        "Numbers are shares in %; the band below the line r = t holds the pairs on it",
        chosen.note,
    )


def _gain(part: pd.DataFrame, kind: str) -> str:
    row = part[part["quantity"] == f"{kind}_gain"].iloc[0]
    return f"{number(row['value'])} [{number(row['ci_low'])}, {number(row['ci_high'])}]"


def _cell(axes: Axes, cell: dict, scale: ScalarMappable) -> None:
    low, high = cell["t_low"], cell["t_high"]
    if cell["pairs"] == "diagonal":
        outline = np.array([(low, low), (high, high), (high, high - _STRIP), (low, low - _STRIP)])
    else:
        outline = corners((cell["r_low"], cell["r_high"]), (low, high))
    color = scale.to_rgba(np.array([cell["value"]]))[0]
    axes.add_patch(Polygon(outline, facecolor=color, edgecolor=_EDGE, linewidth=0.8))
    size = min(7.0, 34 * (high - low))
    if size < _LEAST_LEGIBLE:
        return
    luminance = float(color[:3] @ [0.2126, 0.7152, 0.0722])
    x, y = outline.mean(axis=0)
    ink = "black" if luminance > 0.45 else "white"
    axes.text(x, y, f"{100 * cell['value']:.1f}", ha="center", va="center", fontsize=size, color=ink)
