"""The optimal tangent coefficient over cells of (r, t), as a map (theory: beta*, matrix and gradient form)."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Polygon

from mfdiag.figures.select import by_time, of_quantity, select
from mfdiag.figures.style import finish, grid_of_axes, styled

__all__ = ["WIDE", "corners", "draw", "rows"]

WIDE = 0.5  # an interval this wide cannot tell "leave it" from "replace half of it"
_LEAST_LEGIBLE = 3.0  # points
_HATCH = "////"
_EDGE = "#999999"
_ABOVE, _BELOW = "#FFFFFF", "#000000"


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `coefficient` this figure draws: tangent optima by (r, t), of the matrix form if there are any.

    Otherwise of the gradient form. Of several batch sizes the smallest is taken, where the bias weighs least.
    """
    kept = by_time(of_quantity(frame, "optimum"), "r", "t")
    kept = kept[kept["role"] == "tangent"]
    form = "matrix" if (kept["form"] == "matrix").any() else "gradient"
    kept = kept[kept["form"] == form]
    size = kept["batch_size"].fillna(0)
    return kept[size == size.min()]


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One triangle per checkpoint, beta* printed in each cell; `frame` is table `coefficient`.

    Colour runs with beta* from 0 (dark) to 1 (light); cells above are white, cells below black,
    never clipped. Hatched cells are not to be trusted: a status other than ok and outside_unit_interval, or an
    interval wider than WIDE or missing. Raises InputError where there is nothing to draw.
    """
    kept = rows(frame)
    chosen = select(kept)
    figure, axes = grid_of_axes(1, len(chosen.items), 4.0, 3.6)
    scale = ScalarMappable(Normalize(0, 1), mpl.colormaps["cividis"].with_extremes(under=_BELOW, over=_ABOVE))
    for (label, part), panel in zip(chosen.items, axes[0], strict=True):
        for cell in part.to_dict("records"):
            _cell(panel, cell, scale)
        panel.set(xlim=(0, 1), ylim=(0, 1), xlabel="r", ylabel="t", aspect="equal")
        panel.set_title(label, loc="left", fontweight="bold")
        panel.grid(False)
        marks = [
            Patch(facecolor="white", edgecolor=_EDGE, hatch=_HATCH, label="uncertain"),
            Patch(facecolor=_ABOVE, edgecolor=_EDGE, label="above 1"),
            Patch(facecolor=_BELOW, edgecolor=_EDGE, label="below 0"),
        ]
        panel.legend(handles=marks, loc="lower right", handlelength=1.6)
    bar = figure.colorbar(scale, ax=axes, extend="both", shrink=0.85, pad=0.02)
    bar.set_label("β*  (0: conditional velocity, 1: proxy)")
    return finish(
        figure,
        "Optimal tangent coefficient β* over r and t",
        chosen.context,
        f"{str(kept['form'].iloc[0]).capitalize()} form",
        f"Uncertain: status not ok, or 95 % interval wider than {WIDE:g}",
        "One-step sampling is the upper left corner",
        chosen.note,
    )


def corners(r: tuple[float, float], t: tuple[float, float]) -> np.ndarray:
    """Corners [n, 2] of the part of a cell where r <= t."""
    box = [(r[0], t[0]), (r[0], t[1]), (r[1], t[1]), (r[1], t[0])]
    kept: list[tuple[float, float]] = []
    for here, there in zip(box, box[1:] + box[:1], strict=True):
        if here[0] <= here[1]:
            kept.append(here)
        if (here[0] <= here[1]) != (there[0] <= there[1]):  # every edge has constant r or t: it meets r = t there
            kept.append((here[0],) * 2 if here[0] == there[0] else (here[1],) * 2)
    return np.array(sorted(set(kept), key=kept.index))


def _cell(axes: Axes, cell: dict, scale: ScalarMappable) -> None:
    value = cell["value"]
    width = cell["ci_high"] - cell["ci_low"]
    uncertain = cell["status"] not in ("ok", "outside_unit_interval") or not width <= WIDE
    outline = corners((cell["r_low"], cell["r_high"]), (cell["t_low"], cell["t_high"]))
    if len(outline) < 3:
        return
    color = scale.to_rgba(np.array([value]))[0]
    luminance = float(color[:3] @ [0.2126, 0.7152, 0.0722])
    ink = "black" if luminance > 0.45 else "white"
    axes.add_patch(Polygon(outline, facecolor=color, edgecolor=_EDGE, linewidth=0.8))
    if uncertain:
        axes.add_patch(Polygon(outline, fill=False, edgecolor=ink, linewidth=0, hatch=_HATCH, alpha=0.5))
    span = min(cell["r_high"] - cell["r_low"], cell["t_high"] - cell["t_low"])
    size = min(8.0, (42 if len(outline) == 4 else 34) * span)
    if size < _LEAST_LEGIBLE:
        return
    x, y = outline.mean(axis=0)
    axes.text(
        x,
        y,
        f"{value:z.2f}".replace("-", "−"),
        ha="center",
        va="center",
        fontsize=size,
        color=ink,
        zorder=4,
        bbox={"facecolor": color, "edgecolor": "none", "pad": 0.0} if uncertain else None,
    )
