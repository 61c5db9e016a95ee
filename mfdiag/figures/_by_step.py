"""Panels over the steps of training: how numbers of one run change from checkpoint to checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mfdiag.figures._select import nonempty, shortened
from mfdiag.figures._style import LINES, common_legend, estimate, finish, grid_of_axes, log_axis
from mfdiag.numbers import significant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["courses_of", "draw_by_step"]

_LEAST_STEPS = 3
_SETTINGS = ["dataset", "estimator", "proxy", "weighting", "times", "seed"]
_LABELS = ["dataset", "run", "proxy", "weighting", "times", "seed"]
_COLUMNS = 3
_WIDE = 30  # ratio of largest to smallest value from which an axis is logarithmic


def courses_of(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs with at least three steps; none if there are no such runs."""
    steps = rows[rows["step"].notna()]
    keys = [*_SETTINGS, "run"] if steps.duplicated([*_SETTINGS, "step", "quantity"]).any() else _SETTINGS
    counts = steps.groupby(keys, dropna=False)["step"].transform("nunique")
    return steps[counts >= _LEAST_STEPS]


def draw_by_step(rows: pd.DataFrame, labels: Mapping[str, str], title: str) -> Figure:
    """A panel for each quantity, with a line over the steps for each run; at most four runs.

    Args:
        rows: What `courses_of` returns.
        labels: Quantity -> label of its axis.
        title: Title of the figure.

    Returns:
        The figure. Values that are not finite are left out.
    """
    rows = nonempty(rows)
    differing = [name for name in _LABELS if rows[name].nunique(dropna=False) > 1]
    if "run" in differing and not rows.duplicated([*_SETTINGS, "step", "quantity"]).any():
        differing.remove("run")  # each checkpoint was taken for a run of its own
    runs = [part for _, part in rows.groupby(differing, dropna=False, sort=False)] if differing else [rows]
    quantities = [name for name in labels if name in set(rows["quantity"])]
    columns = min(_COLUMNS, len(quantities))
    names = [", ".join(shortened(str(run[name].iloc[0])) for name in differing) for run in runs[: len(LINES)]]
    least = _title_and_legend(title, names) if differing else 4.2
    figure, axes = grid_of_axes(-(-len(quantities) // columns), columns, 3.1, 2.4, least=least)
    for panel, quantity in zip(axes.flat, quantities, strict=False):
        for run, name, line in zip(runs, names, LINES, strict=False):
            curve = run[run["quantity"] == quantity].sort_values("step")
            estimate(panel, curve["step"].astype(float), curve, line, name or quantity.replace("_", " "))
        panel.set(xlabel="step", ylabel=labels[quantity])
        panel.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
        panel.yaxis.set_major_formatter(lambda value, _: significant(value, 4))
        panel.locator_params(axis="x", nbins=4)
        values = rows.loc[rows["quantity"] == quantity, "value"].to_numpy(float)
        if np.min(values) > 0 and np.max(values) > _WIDE * np.min(values):
            log_axis(panel.yaxis)
    for panel in axes.flat[len(quantities) :]:
        panel.set_visible(False)
    if differing:
        common_legend(figure, axes)
    more = f"Showing {len(LINES)} of {len(runs)} runs" if len(runs) > len(LINES) else ""
    return finish(figure, title, "Points: checkpoints. Bands: 95 % intervals", more)


def _title_and_legend(title: str, names: Sequence[str]) -> float:
    """Width in inches of a title beside a legend of two columns."""
    return 0.3 + 0.09 * len(title) + min(2, len(names)) * (0.5 + 0.08 * max(map(len, names)))
