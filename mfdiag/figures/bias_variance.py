"""Variance, bias and mean squared error of the gradient against beta (theory: section 3, MSE_n)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mfdiag.figures.select import of_quantity, overall, select
from mfdiag.figures.style import GREY, LINES, Line, estimate, finish, grid_of_axes, heading, styled

__all__ = ["draw", "rows"]

_BATCHES = 3


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `sweep` this figure draws: gradient space, gamma = 0, whole network, all times."""
    kept = overall(of_quantity(frame, "variance", "conditional_variance", "bias2", "mse"))
    kept = kept[(kept["space"] == "gradient") & (kept["gamma"] == 0)]
    return kept.sort_values("beta", kind="stable")


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One row of panels per checkpoint: per-sample variance (left), MSE_n and its two parts (right).

    `frame` is table `sweep`. A point that is not positive has no place on a log axis: it is drawn as a downward
    triangle at the upper end of its interval, a bound. Raises InputError where there is nothing to draw.
    """
    chosen = select(rows(frame))
    figure, axes = grid_of_axes(len(chosen.items), 2, 4.4, 3.5)
    sizes = sorted(of_quantity(frame, "mse")["batch_size"].dropna().astype(int).unique())
    picked = [sizes[i] for i in np.unique(np.linspace(0, len(sizes) - 1, min(_BATCHES, len(sizes))).astype(int))]
    bounded = False
    for (label, part), (left, right) in zip(chosen.items, axes, strict=True):
        _variances(left, part)
        heading(left, label or "Per sample")
        bounded |= _errors(right, part, picked)
        heading(right, "Batch of n", columns=2)
    return finish(
        figure,
        "Gradient variance, bias and mean squared error against β",
        chosen.context,
        "bands: 95 % intervals; stars: lowest point of a curve on the grid of β",
        "triangles: the estimate is not positive, drawn at the upper end of its interval" if bounded else "",
        f"n shown: {len(picked)} of {len(sizes)}" if len(picked) < len(sizes) else "",
        chosen.note,
    )


def _quantity(part: pd.DataFrame, name: str) -> pd.DataFrame:
    return part[part["quantity"] == name]


def _starred(axes: Axes, curve: pd.DataFrame, line: Line, label: str) -> str:
    """Marks the curve's lowest point and adds it to the label; an estimate below zero resolves no minimum."""
    best = curve.loc[curve["value"].idxmin()]
    if best["value"] <= 0:
        return f"{label} (minimum not resolved)"
    axes.plot(best["beta"], best["value"], "*", markersize=12, color=line.color, markeredgecolor="white", zorder=5)
    return f"{label} (least at β = {best['beta']:.3g})"


def _variances(axes: Axes, part: pd.DataFrame) -> None:
    names = {"variance": "total", "conditional_variance": "given $x_t, r, t$"}
    for (name, label), line in zip(names.items(), LINES, strict=False):
        curve = _quantity(part, name)
        if not curve.empty:
            estimate(axes, curve["beta"], curve, line, _starred(axes, curve, line, label))
    axes.set(xlabel="β, tangent coefficient", ylabel="tr Cov of the gradient, (loss/parameter)²")
    axes.set_ylim(bottom=0)


def _errors(axes: Axes, part: pd.DataFrame, sizes: list[int]) -> bool:
    variance = _quantity(part, "variance")
    bounded = False
    for size, line in zip(sizes, LINES, strict=False):
        mse = _quantity(part, "mse")
        mse = mse[mse["batch_size"] == size]
        if mse.empty:
            continue
        bounded |= _positive(axes, mse, line, _starred(axes, mse, line, f"MSE, n = {size:,}"))
        axes.plot(variance["beta"], variance["value"] / size, color=line.color, linewidth=0.8, linestyle=(0, (1, 1)))
    bias = _quantity(part, "bias2")
    bounded |= _positive(axes, bias[bias["beta"] != 0], LINES[3], "bias²")
    axes.plot([], [], color=GREY, linewidth=0.8, linestyle=(0, (1, 1)), label="variance / n")
    axes.set(xlabel="β, tangent coefficient", ylabel="(loss/parameter)²", yscale="log")
    return bounded


def _positive(axes: Axes, curve: pd.DataFrame, line: Line, label: str) -> bool:
    """Draws the positive points on a log axis, the others as bounds; says whether there were others."""
    positive = curve["value"] > 0
    shown = curve.assign(value=curve["value"].where(positive))
    floor = shown["value"].min() / 10  # an interval that reaches below zero ends a decade under the lowest point
    shown["ci_low"] = shown["ci_low"].clip(lower=floor)
    shown["ci_high"] = shown["ci_high"].where(shown["ci_high"] > 0)
    estimate(axes, shown["beta"], shown, line, label)
    bounds = shown[~positive]
    axes.plot(bounds["beta"], bounds["ci_high"], "v", color=line.color, markerfacecolor="none")
    return not positive.all()
