"""Every estimator's variance, bias and error, as ratios to MeanFlow's."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mfdiag.figures.select import of_quantity, overall, select
from mfdiag.figures.style import LINES, finish, grid_of_axes, styled

__all__ = ["draw", "rows"]

_RATIOS = {"variance_ratio": "all", "conditional_variance_ratio": "given $x_t$"}


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `compare` this figure draws: ratios to MeanFlow, over the whole network and all times."""
    return overall(of_quantity(frame, *_RATIOS, "mse_ratio"))


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """A line per estimator, in the order of its variance; left variance ratios, right the ratio of MSE_n by batch n.

    `frame` is table `compare`. Raises InputError where there is nothing to draw.
    """
    chosen = select(rows(frame), within=("estimator",), limit=1)
    _, part = chosen.items[0]
    first = part[part["quantity"] == "variance_ratio"].sort_values("value", ascending=False)
    names = first["estimator"].tolist()
    figure, axes = grid_of_axes(1, 2, 4.6, 0.8 + 0.26 * len(names), sharey=True)
    for line, (quantity, label) in zip(LINES, _RATIOS.items(), strict=False):
        _points(axes[0, 0], part[part["quantity"] == quantity], names, line.color, line.marker, label)
    axes[0, 0].set(xlabel="variance / MeanFlow's", yticks=range(len(names)), yticklabels=names)
    errors = part[part["quantity"] == "mse_ratio"]
    sizes = sorted(errors["batch_size"].unique())
    for line, n in zip(LINES, dict.fromkeys((sizes[0], sizes[len(sizes) // 2], sizes[-1])), strict=False):
        _points(axes[0, 1], errors[errors["batch_size"] == n], names, line.color, line.marker, f"n = {n:,}")
    axes[0, 1].set(xlabel="mean squared error of a batch of n / MeanFlow's")
    for panel in axes[0]:
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_xscale("log")
        panel.grid(axis="y", visible=False)
        panel.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, borderaxespad=0.3)
    return finish(
        figure,
        "Estimators against MeanFlow",
        chosen.context,
        "Lines: paired 95 % intervals; an estimate below zero has no place on the scale",
        chosen.note,
    )


def _points(axes: Axes, found: pd.DataFrame, names: list[str], color: str, marker: str, label: str) -> None:
    line = found.set_index("estimator").reindex(names)
    line = line.where(line["value"] > 0)
    place, smallest = np.arange(len(names)), line["value"].min()
    axes.hlines(place, line["ci_low"].clip(lower=smallest / 3), line["ci_high"], color=color, linewidth=1.1)
    axes.plot(line["value"], place, linestyle="", marker=marker, color=color, markerfacecolor="white", label=label)
