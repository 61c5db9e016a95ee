"""The batch-aware optimal coefficient against batch size (docs/theory.md#batch-aware)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mfdiag.figures._base import FigureSpec
from mfdiag.figures._select import select
from mfdiag.figures._style import LINES, Line, estimate, finish, grid_of_axes, heading, log_axis, styled
from mfdiag.numbers import with_interval
from mfdiag.tables.selection import of_quantity, overall

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURE", "draw", "rows"]


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `coefficient` with tangent optima by batch size and critical batches, of the gradient form."""
    optima = overall(of_quantity(frame, "optimum", "critical_batch"))
    optima = optima[(optima["form"] == "gradient") & (optima["role"] == "tangent")]
    curve = (optima["quantity"] == "optimum") & optima["batch_size"].notna()
    return optima[curve | (optima["quantity"] == "critical_batch")] if curve.any() else optima.iloc[:0]


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One line per checkpoint: beta*_n against n, its interval as a band, and n0, where it has halved, as a diamond.

    `frame` is table `coefficient`. A critical batch that is not positive has no place on the axis; its label says so.
    Raises InputError where there is nothing to draw.
    """
    selection = select(rows(frame))
    figure, axes = grid_of_axes(1, 1, 6.2, 3.9)
    panel = axes[0, 0]
    panel.set_xscale("log")
    for (label, part), line in zip(selection.items, LINES, strict=False):
        curve = part[part["quantity"] == "optimum"].sort_values("batch_size")
        critical = _mark_critical_batch(panel, part[part["quantity"] == "critical_batch"], curve, line)
        estimate(panel, curve["batch_size"].astype(float), curve, line, f"{label}: {critical}" if label else critical)
    log_axis(panel.xaxis)
    panel.axhline(0, color="black", linewidth=0.8)
    panel.set(xlabel="batch size n", ylabel="optimal tangent coefficient β*ₙ")
    heading(panel, "")
    return finish(
        figure,
        "Optimal tangent coefficient β* against batch size n",
        selection.context,
        "Bands and bars: 95 % intervals",
        "Diamond: critical batch n₀, at which β* is half its value for a small batch",
        selection.note,
    )


def _mark_critical_batch(axes: Axes, critical: pd.DataFrame, curve: pd.DataFrame, line: Line) -> str:
    """Marks the critical batch at half the curve's first height and returns its label; arrows are open intervals."""
    if critical.empty:
        return "n₀ not in the table"
    row = critical.iloc[0]
    value, low, high = (float(row[name]) for name in ("value", "ci_low", "ci_high"))
    if value <= 0:
        return "n₀ not measurable"
    half = curve["value"].iloc[0] / 2
    sizes = curve["batch_size"].astype(float)
    ends = (
        (low, "|") if low > 0 else (min(value, sizes.min()), "<"),
        (high, "|") if np.isfinite(high) else (max(value, sizes.max()), ">"),
    )
    axes.plot([end for end, _ in ends], [half, half], color=line.color, linewidth=1, zorder=4)
    for end, marker in ends:
        axes.plot(end, half, marker, color=line.color, markersize=6, zorder=4)
    axes.plot(value, half, "D", color=line.color, markersize=7, markeredgecolor="white", zorder=5)
    doubt = "" if row["status"] == "ok" else f", {row['status']}"
    return f"n₀ = {with_interval(value, low, high)}{doubt}"


FIGURE = FigureSpec(
    "batch_optimum",
    "coefficient",
    rows,
    draw,
    says="the optimal beta against batch size, and the batch size that halves it",
    question="cost",
)
