"""The optimal tangent coefficient over cells of (r, t), as a map (docs/theory.md#matrix)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mfdiag.figures._base import FigureSpec
from mfdiag.figures._cells import EDGE, HATCH, corners, draw_cell
from mfdiag.figures._select import select
from mfdiag.figures._style import finish, grid_of_axes, styled
from mfdiag.tables.selection import by_time, of_quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

__all__ = ["FIGURE", "WIDE", "draw", "rows"]

WIDE = 0.5  # an interval this wide does not distinguish "keep the velocity" from "replace half of it"
_ABOVE, _BELOW = "#FFFFFF", "#000000"
_LARGEST_FONT = 8.0
_FONT_PER_WIDTH = {4: 42.0, 3: 34.0}  # points, for a cell of width 1; triangles have less room


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `coefficient` with tangent optima by (r, t), of the matrix form if there are any.

    Otherwise of the gradient form. Of several batch sizes the smallest is taken, where bias matters least.
    """
    optima = by_time(of_quantity(frame, "optimum"), "r", "t")
    optima = optima[optima["role"] == "tangent"]
    form = "matrix" if (optima["form"] == "matrix").any() else "gradient"
    optima = optima[optima["form"] == form]
    size = optima["batch_size"].fillna(0)
    return optima[size == size.min()]


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One triangle per checkpoint, beta* printed in each cell; `frame` is table `coefficient`.

    Colors run from beta* = 0 (dark) to 1 (light); cells above are white, cells below black, never clipped. Uncertain
    cells are hatched: their status is neither ok nor outside_unit_interval, or their interval is missing or wider than
    WIDE. Raises InputError where there is nothing to draw.
    """
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Patch

    optima = rows(frame)
    selection = select(optima)
    figure, axes = grid_of_axes(1, len(selection.items), 4.0, 3.6)
    scale = ScalarMappable(Normalize(0, 1), mpl.colormaps["cividis"].with_extremes(under=_BELOW, over=_ABOVE))
    for (label, part), panel in zip(selection.items, axes[0], strict=True):
        for cell in part.to_dict("records"):
            _draw_optimum(panel, cell, scale)
        panel.set(xlim=(0, 1), ylim=(0, 1), xlabel="r", ylabel="t", aspect="equal")
        panel.set_title(label, loc="left", fontweight="bold")
        panel.grid(False)
        marks = [
            Patch(facecolor="white", edgecolor=EDGE, hatch=HATCH, label="uncertain"),
            Patch(facecolor=_ABOVE, edgecolor=EDGE, label="above 1"),
            Patch(facecolor=_BELOW, edgecolor=EDGE, label="below 0"),
        ]
        panel.legend(handles=marks, loc="lower right", handlelength=1.6)
    bar = figure.colorbar(scale, ax=axes, extend="both", shrink=0.85, pad=0.02)
    bar.set_label("β*  (0: conditional velocity, 1: proxy)")
    return finish(
        figure,
        "Optimal tangent coefficient β* over r and t",
        selection.context,
        f"{str(optima['form'].iloc[0]).capitalize()} form",
        f"Uncertain: status not ok, or 95 % interval wider than {WIDE:g}",
        "One-step sampling uses the upper left corner",
        selection.note,
    )


def _draw_optimum(axes: Axes, cell: dict, scale: ScalarMappable) -> None:
    outline = corners((cell["r_low"], cell["r_high"]), (cell["t_low"], cell["t_high"]))
    if len(outline) < 3:
        return
    width = cell["ci_high"] - cell["ci_low"]
    uncertain = cell["status"] not in ("ok", "outside_unit_interval") or not width <= WIDE
    color = scale.to_rgba(np.array([cell["value"]]))[0]
    narrower = min(cell["r_high"] - cell["r_low"], cell["t_high"] - cell["t_low"])
    font_size = min(_LARGEST_FONT, _FONT_PER_WIDTH.get(len(outline), _FONT_PER_WIDTH[3]) * narrower)
    draw_cell(axes, outline, color, f"{cell['value']:z.2f}".replace("-", "−"), font_size, hatched=uncertain)


FIGURE = FigureSpec(
    "beta_map",
    "coefficient",
    rows,
    draw,
    says="the optimal beta in each cell of (r, t); hatched where it is uncertain",
)
