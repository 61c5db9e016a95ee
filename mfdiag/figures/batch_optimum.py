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
        "bands and bars: 95 % intervals",
        "diamond: critical batch n₀, where β* has halved",
        chosen.note,
    )


def _critical(axes: Axes, found: pd.DataFrame, curve: pd.DataFrame, line: Line) -> str:
    """Marks the critical batch on the curve's half height and returns its label."""
    if curve.empty or found.empty:
        return "n₀ not measured"
    row = found.iloc[0]
    if row["value"] <= 0:
        return "n₀ not resolved"
    half = curve["value"].iloc[0] / 2
    low, high = (row[end] if np.isfinite(row[end]) and row[end] > 0 else row["value"] for end in ("ci_low", "ci_high"))
    axes.plot([low, high], [half, half], color=line.color, linewidth=1, marker="|", markersize=7, zorder=4)
    axes.plot(row["value"], half, "D", color=line.color, markersize=7, markeredgecolor="white", zorder=5)
    return f"n₀ = {number(row['value'])} [{_end(row['ci_low'])}, {_end(row['ci_high'])}]"


def _end(value: float) -> str:
    return number(value) if np.isfinite(value) else "∞"
