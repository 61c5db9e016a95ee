"""Gradient variance by layer, in network order, with each layer's share of the total."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mfdiag.figures._base import FigureSpec
from mfdiag.figures._select import select
from mfdiag.figures._style import LINES, SMALL, finish, grid_of_axes, styled
from mfdiag.numbers import percent
from mfdiag.tables.selection import of_quantity, over_all_times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURE", "MOST_LAYERS", "draw", "rows"]

MOST_LAYERS = 30
_COLUMNS = 2


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `variance` with the variance of each layer, over all times."""
    variances = over_all_times(of_quantity(frame, "variance"))
    return variances[variances["layer"] != "all"]


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One panel of horizontal bars per checkpoint and estimator; the first layer of the network is on top.

    `frame` is table `variance`, layers in network order. Shares are of the sum over layers, which is the variance of
    the whole gradient. Above MOST_LAYERS layers the smallest are drawn as one bar. Raises InputError where there is
    nothing to draw.
    """
    selection = select(rows(frame))
    by_panel = [part.set_index("layer")[["value", "ci_low", "ci_high"]] for _, part in selection.items]
    names = list(dict.fromkeys(name for layers in by_panel for name in layers.index))
    shown = names
    if len(names) > MOST_LAYERS:
        weight = pd.concat([layers["value"] / layers["value"].sum() for layers in by_panel], axis=1).sum(axis=1)
        large = set(weight.nlargest(MOST_LAYERS - 1).index)
        shown = [name for name in names if name in large]
    width = 3.2 if len(by_panel) > 1 else 6.0
    columns = min(_COLUMNS, len(by_panel))
    figure, axes = grid_of_axes(-(-len(by_panel) // columns), columns, width, 0.9 + 0.24 * len(shown), sharey=True)
    for (label, _), panel, layers in zip(selection.items, axes.flat, by_panel, strict=False):
        _draw_bars(panel, layers, shown)
        panel.set_title(label, loc="left", fontweight="bold")
    widest = max(panel.get_xlim()[1] for panel in axes.flat[: len(by_panel)])  # bars are compared by eye
    for panel in axes.flat[: len(by_panel)]:
        panel.set_xlim(0, widest)
    for panel in axes.flat[len(by_panel) :]:
        panel.set_visible(False)
    return finish(
        figure,
        "Gradient variance by layer",
        selection.context,
        "Lines: 95 % intervals. Percentages: share of the sum over layers",
        f"The smallest of the {len(names)} layers share one bar" if len(shown) < len(names) else "",
        selection.note,
    )


def _draw_bars(axes: Axes, layers: pd.DataFrame, shown: list[str]) -> None:
    bars = layers.reindex(shown)
    rest = layers.drop(index=shown, errors="ignore")
    if not rest.empty:
        bars.loc[f"{len(rest)} smaller layers", "value"] = rest["value"].sum()
    place = range(len(bars))
    axes.barh(place, bars["value"], height=0.7, color="#8FA9C8", edgecolor=LINES[0].color, linewidth=0.6)
    ends = bars[["value", "ci_high"]].where(np.isfinite).max(axis=1)
    right = 1.25 * ends[ends > 0].max() if (ends > 0).any() else 1.0
    axes.hlines(place, bars["ci_low"], bars["ci_high"].clip(upper=right), color="black", linewidth=1.2)
    for y, end, share in zip(place, ends, bars["value"] / layers["value"].sum(), strict=True):
        if pd.notna(share):
            axes.annotate(percent(share), (end, y), (4, 0), textcoords="offset points", va="center", fontsize=SMALL)
    axes.set_yticks(place, bars.index.tolist())
    axes.set(xlabel="variance, (loss/parameter)²", xlim=(0, right))
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


FIGURE = FigureSpec(
    "layers",
    "variance",
    rows,
    draw,
    says="the fraction of the gradient variance in each layer",
    question="where",
)
