"""Variance, bias and mean squared error of the gradient against beta (theory: section 3, MSE_n)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from mfdiag.figures.select import of_quantity, overall, select
from mfdiag.figures.style import LINES, Line, estimate, finish, grid_of_axes, heading, styled

__all__ = ["draw", "rows"]

_BATCHES = 3
_WIDE = 20  # ratio of largest to smallest value from which a linear axis hides the small ones
_UNIT = "(loss/parameter)²"
_TICKS = StrMethodFormatter("{x:,.6g}")


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `sweep` this figure draws: gradient space, gamma = 0, whole network, all times."""
    kept = overall(of_quantity(frame, "variance", "conditional_variance", "bias2", "mse"))
    kept = kept[(kept["space"] == "gradient") & (kept["gamma"] == 0)]
    return kept.sort_values("beta", kind="stable")


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One row of panels per checkpoint: per-sample variance, squared bias, and n MSE_n = variance + n bias2.

    `frame` is table `sweep`. Multiplying the error by n puts every batch size on the scale of the variance. Estimates
    of the bias below zero are drawn where they are; an error below zero resolves no minimum, and its label says so.
    Raises InputError where there is nothing to draw.
    """
    kept = rows(frame)
    chosen = select(kept)
    figure, axes = grid_of_axes(len(chosen.items), 3, 3.7, 3.6)
    sizes = sorted(kept.loc[kept["quantity"] == "mse", "batch_size"].astype(int).unique())
    picked = [sizes[i] for i in np.unique(np.linspace(0, len(sizes) - 1, min(_BATCHES, len(sizes))).astype(int))]
    for (label, part), (left, middle, right) in zip(chosen.items, axes, strict=True):
        _variances(left, part, label)
        _bias(middle, part)
        _errors(right, part, picked)
    return finish(
        figure,
        "Gradient variance, bias and mean squared error against β",
        chosen.context,
        "Left: one sample. Right: variance + n bias²",
        "Bands: 95 % intervals. Stars: lowest point of a curve on the grid of β",
        f"Batch sizes shown: {len(picked)} of {len(sizes)}" if len(picked) < len(sizes) else "",
        chosen.note,
    )


def _starred(axes: Axes, curve: pd.DataFrame, line: Line, label: str) -> None:
    """Draws a curve with its lowest point marked and named; a value below zero resolves no minimum."""
    best = curve.iloc[int(curve["value"].argmin())]
    resolved = best["value"] > 0
    where = f"least at β = {best['beta']:.3g}" if resolved else "minimum not resolved"
    estimate(axes, curve["beta"], curve, line, f"{label} ({where})")
    if resolved:
        axes.plot(best["beta"], best["value"], "*", markersize=13, color=line.color, markeredgecolor="white", zorder=5)


def _variances(axes: Axes, part: pd.DataFrame, title: str) -> None:
    names = {"variance": "total", "conditional_variance": "given $x_t, r, t$"}
    for (name, label), line in zip(names.items(), LINES, strict=False):
        curve = part[part["quantity"] == name]
        if not curve.empty:
            _starred(axes, curve, line, label)
    axes.set(xlabel="β, tangent coefficient", ylabel=f"variance, {_UNIT}")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(_TICKS)
    heading(axes, title)


def _bias(axes: Axes, part: pd.DataFrame) -> None:
    curve = part[part["quantity"] == "bias2"]
    estimate(axes, curve["beta"], curve, LINES[3], "bias², unbiased estimate")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.yaxis.set_major_formatter(_TICKS)
    axes.set(xlabel="β, tangent coefficient", ylabel=f"bias², {_UNIT}")
    heading(axes, "")


def _errors(axes: Axes, part: pd.DataFrame, sizes: list[int]) -> None:
    mse = part[part["quantity"] == "mse"]
    for size, line in zip(sizes, LINES, strict=False):
        curve = mse[mse["batch_size"] == size]
        if not curve.empty:
            scaled = curve.assign(**{name: curve[name] * size for name in ("value", "ci_low", "ci_high")})
            _starred(axes, scaled, line, f"n = {size:,}")
    axes.yaxis.set_major_formatter(_TICKS)
    values = (mse["value"] * mse["batch_size"].astype(float))[mse["batch_size"].isin(sizes)]
    if values.min() > 0 and values.max() > _WIDE * values.min():
        axes.set_yscale("log", nonpositive="clip")
    elif values.min() > 0:
        axes.set_ylim(bottom=0)
    else:
        axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="β, tangent coefficient", ylabel=f"n · MSEₙ, {_UNIT}")
    heading(axes, "")
