"""The batch-aware optimal coefficient against batch size (theory: section 3, beta*_n and critical batch n0)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mfdiag.figures.select import of_quantity, overall, select
from mfdiag.figures.style import LINES, Line, estimate, finish, grid_of_axes, heading, number, styled

__all__ = ["draw", "rows"]


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `coefficient` this figure draws: tangent optima and critical batches of the gradient form."""
    kept = overall(of_quantity(frame, "optimum", "critical_batch"))
    kept = kept[(kept["form"] == "gradient") & (kept["role"] == "tangent")]
    curve = (kept["quantity"] == "optimum") & kept["batch_size"].notna()
    return kept[curve | (kept["quantity"] == "critical_batch")] if curve.any() else kept.iloc[:0]


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One line per checkpoint: beta*_n against n, its interval as a band, and n0, where it has halved, as a diamond.

    `frame` is table `coefficient`. A critical batch that is not positive has no place on the axis; its label says so.
    Raises InputError where there is nothing to draw.
    """
    chosen = select(rows(frame))
    figure, axes = grid_of_axes(1, 1, 6.2, 3.9)
    panel = axes[0, 0]
    panel.set_xscale("log")
    for (label, part), line in zip(chosen.items, LINES, strict=False):
        curve = part[part["quantity"] == "optimum"].sort_values("batch_size")
        critical = _critical(panel, part[part["quantity"] == "critical_batch"], curve, line)
        estimate(panel, curve["batch_size"].astype(float), curve, line, f"{label}: {critical}" if label else critical)
    panel.axhline(0, color="black", linewidth=0.8)
    panel.set(xlabel="n, samples per batch", ylabel="β*ₙ, optimal tangent coefficient")
    heading(panel, "")
    return finish(
        figure,
        "Optimal tangent coefficient β* against batch size n",
        chosen.context,
        "Bands and bars: 95 % intervals",
        "Diamond: critical batch n₀, where β* has halved",
        chosen.note,
    )


def _critical(axes: Axes, found: pd.DataFrame, curve: pd.DataFrame, line: Line) -> str:
    """Marks the critical batch at half the curve's first height and returns its label; arrows are open intervals."""
    if found.empty:
        return "n₀ not measured"
    row = found.iloc[0]
    value, low, high = (float(row[name]) for name in ("value", "ci_low", "ci_high"))
    if value <= 0:
        return "n₀ not resolved"
    half = curve["value"].iloc[0] / 2
    sizes = curve["batch_size"].astype(float)
    ends = (
        (low, "|") if low > 0 else (min(value, sizes.min()), "<"),
        ((high, "|") if np.isfinite(high) else (max(value, sizes.max()), ">")),
    )
    axes.plot([end for end, _ in ends], [half, half], color=line.color, linewidth=1, zorder=4)
    for end, mark in ends:
        axes.plot(end, half, mark, color=line.color, markersize=6, zorder=4)
    axes.plot(value, half, "D", color=line.color, markersize=7, markeredgecolor="white", zorder=5)
    doubt = "" if row["status"] == "ok" else f", {row['status']}"
    return f"n₀ = {number(value)} [{number(low)}, {number(high)}]{doubt}"
