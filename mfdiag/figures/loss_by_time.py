"""Loss variance against t, conditional against deterministic tangent (arXiv 2605.09235: DiT-B/4, up to 71x)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mfdiag.figures._base import FigureSpec
from mfdiag.figures._select import select
from mfdiag.figures._style import LINES, estimate, finish, grid_of_axes, heading, log_axis, styled
from mfdiag.numbers import significant
from mfdiag.tables.selection import by_time, midpoint, of_quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURE", "draw", "rows"]

_DETERMINISTIC = ("ema_tangent", "self_tangent", "teacher_tangent", "plane:1,0")  # the last for the proxy exact
_TANGENTS = {"meanflow": "conditional"} | dict.fromkeys(_DETERMINISTIC, "deterministic")


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `variance` with the loss variance of the two tangents, by t alone."""
    variances = by_time(of_quantity(frame, "loss_variance"), "t")
    return variances[variances["estimator"].isin(list(_TANGENTS))].sort_values("t_low", kind="stable")


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One panel per checkpoint: both tangents' loss variance at the centers of the t bins, and their largest ratio.

    `frame` is table `variance`. Raises InputError where there is nothing to draw.
    """
    selection = select(rows(frame), within=("estimator", "proxy"))
    width = 4.6 if len(selection.items) == 1 else 3.5
    figure, axes = grid_of_axes(1, len(selection.items), width, 3.4, sharey=True)
    for (label, part), panel in zip(selection.items, axes[0], strict=True):
        several_proxies = part["proxy"].nunique(dropna=False) > 1
        for (estimator, tangent), line in zip(_TANGENTS.items(), LINES, strict=False):
            for proxy, curve in part[part["estimator"] == estimator].groupby("proxy", dropna=False, sort=False):
                source = f", proxy {proxy!s}" if several_proxies and pd.notna(proxy) else ""
                estimate(panel, midpoint(curve, "t"), curve, line, f"{tangent} ({estimator}{source})")
        panel.set(xlabel="t", xlim=(0, 1))
        log_axis(panel.yaxis)
        _add_largest_ratio(panel, part)
        heading(panel, label)
    axes[0, 0].set_ylabel("variance of the loss, loss²")
    return finish(
        figure,
        "Loss variance against t, by tangent",
        selection.context,
        "Points: centers of the bins of t. Bands: 95 % intervals",
        selection.note,
    )


def _add_largest_ratio(axes: Axes, part: pd.DataFrame) -> None:
    """Adds to the legend the largest ratio of the two tangents' loss variances, and its bin."""
    measured = set(part["estimator"])
    conditional, deterministic = (
        part[part["estimator"] == name].drop_duplicates(["t_low", "t_high"])[["t_low", "t_high", "value"]]
        for name in ("meanflow", next((name for name in _DETERMINISTIC if name in measured), "none"))
    )
    both = conditional.merge(deterministic, on=["t_low", "t_high"])
    if not both.empty:
        ratio = both["value_x"] / both["value_y"]
        largest = both.iloc[int(ratio.argmax())]
        text = f"largest ratio {significant(ratio.max())}× at t in [{largest['t_low']:.3g}, {largest['t_high']:.3g}]"
        axes.plot([], [], " ", label=text)


FIGURE = FigureSpec(
    "loss_by_time",
    "variance",
    rows,
    draw,
    says="variance of the loss against t, for the conditional and the proxy tangent",
    question="where",
)
