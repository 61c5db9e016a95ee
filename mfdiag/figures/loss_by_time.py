"""Loss variance against t, conditional against deterministic tangent (arXiv 2605.09235: DiT-B/4, up to 71x)."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mfdiag.figures.select import by_time, midpoint, of_quantity, select
from mfdiag.figures.style import LINES, estimate, finish, grid_of_axes, heading, number, styled

__all__ = ["draw", "rows"]

_TANGENTS = {"meanflow": "conditional", "ema_tangent": "deterministic"}


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `variance` this figure draws: loss variance by t alone, of the two tangents."""
    kept = by_time(of_quantity(frame, "loss_variance"), "t")
    return kept[kept["estimator"].isin(list(_TANGENTS))].sort_values("t_low", kind="stable")


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One panel per checkpoint: both tangents' loss variance at the centres of the t bins, and their largest ratio.

    `frame` is table `variance`. Raises InputError where there is nothing to draw.
    """
    chosen = select(rows(frame), within=("estimator", "proxy"))
    figure, axes = grid_of_axes(1, len(chosen.items), 4.6 if len(chosen.items) == 1 else 3.5, 3.4, sharey=True)
    for (label, part), panel in zip(chosen.items, axes[0], strict=True):
        mixed = part["proxy"].nunique(dropna=False) > 1
        for (estimator, tangent), line in zip(_TANGENTS.items(), LINES, strict=False):
            for proxy, curve in part[part["estimator"] == estimator].groupby("proxy", dropna=False, sort=False):
                source = f", proxy {proxy!s}" if mixed and pd.notna(proxy) else ""
                estimate(panel, midpoint(curve, "t"), curve, line, f"{tangent} ({estimator}{source})")
        panel.set(xlabel="t", xlim=(0, 1), yscale="log")
        _ratio(panel, part)
        heading(panel, label)
    axes[0, 0].set_ylabel("variance of the loss, loss²")
    return finish(
        figure,
        "Loss variance against t, by tangent",
        chosen.context,
        "Points: centres of the bins of t. Bands: 95 % intervals",
        chosen.note,
    )


def _ratio(axes: Axes, part: pd.DataFrame) -> None:
    """Adds to the legend the largest ratio of the two tangents' loss variances, and the bin it is found in."""
    conditional, deterministic = (
        part[part["estimator"] == name].drop_duplicates(["t_low", "t_high"])[["t_low", "t_high", "value"]]
        for name in _TANGENTS
    )
    both = conditional.merge(deterministic, on=["t_low", "t_high"])
    if not both.empty:
        ratio = both["value_x"] / both["value_y"]
        best = both.iloc[int(ratio.argmax())]
        text = f"largest ratio {number(ratio.max())}× at t in [{best['t_low']:.3g}, {best['t_high']:.3g}]"
        axes.plot([], [], " ", label=text)
