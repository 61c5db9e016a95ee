"""Variance, bias and mean squared error of the gradient against beta (docs/theory.md#mse)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mfdiag.figures._base import FigureSpec
from mfdiag.figures._select import select
from mfdiag.figures._style import LINES, Line, estimate, finish, from_zero, grid_of_axes, heading, log_axis, styled
from mfdiag.numbers import significant
from mfdiag.tables.selection import of_quantity, overall

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURE", "draw", "rows"]

_MOST_BATCH_SIZES = 3
_WIDE = 20  # ratio of largest to smallest value from which a linear axis hides the small ones
_LONG = 1e5  # a value from which its number takes room
_UNIT = "(loss/parameter)²"


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `sweep` in gradient space at gamma = 0, of the whole network over all times."""
    moments = overall(of_quantity(frame, "variance", "conditional_variance", "bias2", "mse"))
    moments = moments[(moments["space"] == "gradient") & (moments["gamma"] == 0)]
    return moments.sort_values("beta", kind="stable")


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One row of panels per checkpoint: per-sample variance, squared bias, and n MSE_n = variance + n bias2.

    `frame` is table `sweep`. Multiplying the error by n puts every batch size on the scale of the variance. Estimates
    below zero are drawn where they are; where the lowest error is below zero, the legend calls the minimum not
    measurable. Raises InputError where there is nothing to draw.
    """
    moments = rows(frame)
    selection = select(moments)
    drawn = pd.concat([part for _, part in selection.items])
    values = drawn.loc[drawn["quantity"] != "bias2", "value"]
    wide = values.min() <= 0 or values.max() >= _LONG  # long words in the legends, long numbers at the axes
    figure, axes = grid_of_axes(len(selection.items), 3, 3.7 if wide else 3.3, 3.4)
    sizes = sorted(moments.loc[moments["quantity"] == "mse", "batch_size"].astype(int).unique())
    evenly = np.unique(np.linspace(0, len(sizes) - 1, min(_MOST_BATCH_SIZES, len(sizes))).astype(int))
    shown = [sizes[i] for i in evenly]
    for (label, part), (left, middle, right) in zip(selection.items, axes, strict=True):
        _draw_variances(left, part, label)
        _draw_bias(middle, part)
        _draw_errors(right, part, shown)
    return finish(
        figure,
        "Gradient variance, bias and mean squared error against β",
        selection.context,
        "Left: variance of one sample. Right: variance + n bias²",
        "Bands: 95 % intervals. Stars: lowest point of a curve",
        f"Showing {len(shown)} of {len(sizes)} batch sizes" if len(shown) < len(sizes) else "",
        selection.note,
    )


def _draw_curve(axes: Axes, curve: pd.DataFrame, line: Line, label: str) -> None:
    """Draws a curve with a star at its lowest point, unless that is below zero."""
    lowest = curve.iloc[int(curve["value"].argmin())]
    measurable = lowest["value"] > 0
    where = f"lowest at β = {lowest['beta']:.3g}" if measurable else "minimum not measurable"
    estimate(axes, curve["beta"], curve, line, f"{label} ({where})")
    if measurable:
        axes.plot(
            lowest["beta"], lowest["value"], "*", markersize=13, color=line.color, markeredgecolor="white", zorder=5
        )


def _label_axes(axes: Axes, ylabel: str) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: significant(value, 4))
    axes.set(xlabel="β, tangent coefficient", ylabel=f"{ylabel}, {_UNIT}")


def _draw_variances(axes: Axes, part: pd.DataFrame, title: str) -> None:
    labels = {"variance": "total", "conditional_variance": "given xₜ, r, t"}
    for (quantity, label), line in zip(labels.items(), LINES, strict=False):
        curve = part[part["quantity"] == quantity]
        if not curve.empty:
            _draw_curve(axes, curve, line, label)
    from_zero(axes)
    _label_axes(axes, "variance")
    heading(axes, title)


def _draw_bias(axes: Axes, part: pd.DataFrame) -> None:
    curve = part[part["quantity"] == "bias2"]
    estimate(axes, curve["beta"], curve, LINES[3], "bias², unbiased estimate")
    axes.axhline(0, color="black", linewidth=0.8)
    _label_axes(axes, "bias²")
    heading(axes, "")


def _draw_errors(axes: Axes, part: pd.DataFrame, sizes: list[int]) -> None:
    mse = part[part["quantity"] == "mse"]
    for size, line in zip(sizes, LINES, strict=False):
        curve = mse[mse["batch_size"] == size]
        if not curve.empty:
            scaled = curve.assign(**{name: curve[name] * size for name in ("value", "ci_low", "ci_high")})
            _draw_curve(axes, scaled, line, f"n = {size:,}")
    values = (mse["value"] * mse["batch_size"].astype(float))[mse["batch_size"].isin(sizes)]
    _label_axes(axes, "n · MSEₙ")
    if values.min() > 0 and values.max() > _WIDE * values.min():
        log_axis(axes.yaxis)
    elif values.min() > 0:
        from_zero(axes)
    else:
        axes.axhline(0, color="black", linewidth=0.8)
    heading(axes, "")


FIGURE = FigureSpec(
    "bias_variance",
    "sweep",
    rows,
    draw,
    says="variance, bias and mean squared error of the gradient against beta, for a small, a medium and a large batch",
    question="cost",
)
