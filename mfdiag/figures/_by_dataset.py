"""Panels for a grid of models: one data set each, over the trained coefficient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from mfdiag.figures._select import shortened
from mfdiag.figures._style import LINES, common_legend, estimate, finish, from_zero, grid_of_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_by_dataset"]

_COLUMNS = 3


def draw_by_dataset(series: Mapping[str, pd.DataFrame], ylabel: str, title: str, *notes: str) -> Figure:
    """A panel for each data set, with a line over beta for each series.

    Args:
        series: Label -> rows of table `grid`; at most four.
        ylabel: Label of the vertical axes.
        title: Title of the figure.
        *notes: Sentences of the caption, without the last period.

    Returns:
        The figure.
    """
    datasets = list(dict.fromkeys(name for rows in series.values() for name in rows["dataset"]))
    columns = min(_COLUMNS, len(datasets))
    figure, axes = grid_of_axes(-(-len(datasets) // columns), columns, 2.7, 2.1, least=7.2)
    for panel, dataset in zip(axes.flat, datasets, strict=False):
        for (label, rows), line in zip(series.items(), LINES, strict=False):
            curve = rows[rows["dataset"] == dataset].sort_values("beta")
            if len(curve):
                estimate(panel, curve["beta"], curve, line, label)
        panel.set_title(shortened(dataset), loc="left", fontweight="bold")
        from_zero(panel)
        panel.set_xlabel("β")
    for panel in axes[:, 0]:
        panel.set_ylabel(ylabel)
    for panel in axes.flat[len(datasets) :]:
        panel.set_visible(False)
    common_legend(figure, axes)
    return finish(figure, title, "β: tangent coefficient", "Bands: 95 % intervals over training seeds", *notes)
