"""Gradient variance by layer, in network order, with each layer's share of the total."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mfdiag.figures.select import of_quantity, select
from mfdiag.figures.style import LINES, finish, grid_of_axes, styled

__all__ = ["MOST_LAYERS", "draw", "rows"]

MOST_LAYERS = 30
_BINS = ["r_low", "r_high", "t_low", "t_high"]


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `variance` this figure draws: variance of each layer, over all times."""
    kept = of_quantity(frame, "variance")
    return kept[(kept["layer"] != "all") & kept[_BINS].isna().all(axis=1)]


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One panel of horizontal bars per checkpoint and estimator; the first layer of the network is on top.

    `frame` is table `variance`, layers in network order. Shares are of the sum over layers, which is the variance of
    the whole gradient. Above MOST_LAYERS layers the smallest are drawn as one bar. Raises InputError where there is
    nothing to draw.
    """
    chosen = select(rows(frame))
    count = max(part["layer"].nunique() for _, part in chosen.items)
    figure, axes = grid_of_axes(
        1, len(chosen.items), 3.4 if len(chosen.items) > 1 else 6.0, 0.9 + 0.24 * min(count, 31)
    )
    for (label, part), panel in zip(chosen.items, axes[0], strict=True):
        _bars(panel, part)
        panel.set_title(label, loc="left", fontweight="bold")
    return finish(
        figure,
        "Gradient variance by layer",
        chosen.context,
        "lines: 95 % intervals; percentages: share of the sum over layers",
        f"the smallest of {count} layers are drawn as one bar" if count > MOST_LAYERS else "",
        chosen.note,
    )


def _bars(axes: Axes, part: pd.DataFrame) -> None:
    bars = part[["layer", "value", "ci_low", "ci_high"]]
    total = bars["value"].sum()
    if len(bars) > MOST_LAYERS:
        large = bars["value"].rank(method="first", ascending=False) < MOST_LAYERS
        rest = bars.loc[~large, "value"].sum()
        other = pd.DataFrame({"layer": [f"{int((~large).sum())} others"], "value": [rest]})
        bars = pd.concat([bars[large], other], ignore_index=True)
    place = range(len(bars))
    axes.barh(place, bars["value"], height=0.7, color="#8FA9C8", edgecolor=LINES[0].color, linewidth=0.6)
    axes.hlines(place, bars["ci_low"], bars["ci_high"], color="black", linewidth=1.2)
    ends = bars[["value", "ci_high"]].max(axis=1)
    for y, end, value in zip(place, ends, bars["value"], strict=True):
        axes.annotate(f"{value / total:.1%}", (end, y), (4, 0), textcoords="offset points", va="center", fontsize=7.5)
    axes.set_yticks(place, bars["layer"].tolist())
    axes.set(xlabel="tr Cov of the gradient, (loss/parameter)²", xlim=(0, 1.18 * ends.max()))
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
