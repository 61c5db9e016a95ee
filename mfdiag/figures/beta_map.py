"""The optimal tangent coefficient over cells of (r, t), as a map (docs/theory.md#matrix)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mfdiag.figures._base import FigureSpec
from mfdiag.figures._cells import EDGE, HATCH, corners, draw_cell, has_room, side_of
from mfdiag.figures._select import select
from mfdiag.figures._style import finish, grid_of_axes, styled
from mfdiag.numbers import with_interval
from mfdiag.tables.selection import by_time, of_quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

__all__ = ["FIGURE", "WIDE", "draw", "rows"]

WIDE = 0.5  # an interval this wide does not distinguish "keep the velocity" from "replace half of it"
_SIDE, _MARGIN = 2.9, 0.9  # inches: least side of a triangle, and what a panel needs around it
_COLUMNS = 2
_BEYOND = 0.75  # length of the scale outside [0, 1], on either side, in lengths of [0, 1]


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

    Lighter is more, linearly within [0, 1] and logarithmically beyond, as far as the values reach. Uncertain cells are
    hatched: their status is neither ok nor outside_unit_interval, or their interval is missing or wider than WIDE.
    Raises InputError where there is nothing to draw.
    """
    from matplotlib.patches import Patch

    optima = rows(frame)
    selection = select(optima)
    shown = pd.concat([part for _, part in selection.items])
    side = side_of(shown["t_low"].nunique(), _SIDE)
    columns = min(_COLUMNS, len(selection.items))
    figure, axes = grid_of_axes(-(-len(selection.items) // columns), columns, side + _MARGIN, side + _MARGIN)
    scale = _scale(shown["value"].min(), shown["value"].max())
    for (label, part), panel in zip(selection.items, axes.flat, strict=False):
        for cell in part.to_dict("records"):
            _draw_optimum(panel, cell, scale, side)
        panel.set(xlim=(0, 1), ylim=(0, 1), xlabel="r", ylabel="t", aspect="equal")
        panel.set_title(label, loc="left", fontweight="bold")
        panel.grid(False)
        uncertain = Patch(facecolor="none", edgecolor=EDGE, hatch=HATCH, label="uncertain")
        panel.legend(handles=[uncertain], loc="lower right", handlelength=1.6)
    for panel in axes.flat[len(selection.items) :]:
        panel.set_visible(False)
    bar = figure.colorbar(scale, ax=axes, shrink=0.85, pad=0.02, ticks=_ticks(scale))
    bar.ax.set_yticklabels([_short(value) for value in bar.get_ticks()])
    bar.ax.minorticks_off()
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


def _scale(low: float, high: float) -> ScalarMappable:
    """Colors from dark blue over gray to yellow: linear within [0, 1], logarithmic beyond, where there are values."""
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import FuncNorm

    low, high = min(low, 0.0), max(high, 1.0)
    below, above = np.log1p(-low) or 1.0, np.log1p(high - 1) or 1.0

    def place(value: np.ndarray) -> np.ndarray:
        over, under = np.maximum(value - 1, 0), np.maximum(-value, 0)
        return np.clip(value, 0, 1) + _BEYOND * (np.log1p(over) / above - np.log1p(under) / below)

    def value_at(place: np.ndarray) -> np.ndarray:
        over, under = np.maximum(place - 1, 0), np.maximum(-place, 0)
        return np.clip(place, 0, 1) + np.expm1(over / _BEYOND * above) - np.expm1(under / _BEYOND * below)

    return ScalarMappable(FuncNorm((place, value_at), low, high), mpl.colormaps["cividis"])


def _ticks(scale: ScalarMappable) -> list[float]:
    """0, 0.5 and 1, the ends of the scale, and what lies halfway to an end that is far away."""
    low, high = (float(end) for end in scale.get_clim())
    halfway = scale.norm.inverse(np.array([0.13, 0.87]))  # type: ignore[attr-defined]  # the stubs know fewer norms
    middle = [value for value in halfway if value < -1 or value > 2]
    ends = [end for end in (low, high) if not -0.05 <= end <= 1.05]
    return sorted({0.0, 0.5, 1.0, *(float(f"{value:.1g}") for value in middle), *ends})


def _short(value: float) -> str:
    """At most six letters: 0.73, −12, 3,400, 1e+05."""
    text = f"{value:z.2f}" if abs(value) < 10 else f"{value:,.0f}" if abs(value) < 10_000 else f"{value:.0e}"
    return text.replace("-", "−", 1) if value < 0 else text


def _draw_optimum(axes: Axes, cell: dict, scale: ScalarMappable, side: float) -> None:
    outline = corners((cell["r_low"], cell["r_high"]), (cell["t_low"], cell["t_high"]))
    if len(outline) < 3:
        return
    width = cell["ci_high"] - cell["ci_low"]
    uncertain = cell["status"] not in ("ok", "outside_unit_interval") or not width <= WIDE
    color = scale.to_rgba(np.array([cell["value"]]))[0]
    where = f"r in [{cell['r_low']:.3g}, {cell['r_high']:.3g}], t in [{cell['t_low']:.3g}, {cell['t_high']:.3g}]"
    doubt = "" if cell["status"] == "ok" else f", {cell['status']}"
    tip = f"{where}: {with_interval(cell['value'], cell['ci_low'], cell['ci_high'])}{doubt}"
    text = _short(cell["value"]) if has_room(outline, side) else ""
    draw_cell(axes, outline, color, text, tip, hatched=uncertain)


FIGURE = FigureSpec(
    "beta_map",
    "coefficient",
    rows,
    draw,
    says="the optimal beta in each cell of (r, t); hatched where it is uncertain",
    question="remedies",
)
