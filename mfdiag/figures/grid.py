"""A grid of models over the coefficient it was trained with: gradient variance, and sample quality."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from mfdiag.figures.select import of_quantity, present
from mfdiag.figures.style import LINES, estimate, finish, grid_of_axes, styled

__all__ = ["draw_quality", "draw_variance", "quality_rows", "variance_rows"]

_COLUMNS = 3
_METRIC = "sliced_wasserstein"
_SEEDS = "β: tangent coefficient. Bands: 95 % intervals over training seeds"


def variance_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `grid` about gradient variance."""
    return of_quantity(frame, "variance", "variance_at_0")


@styled
def draw_variance(frame: pd.DataFrame) -> Figure:
    """Gradient variance against beta: of models trained at each beta, and of those trained at 0 measured there."""
    rows = present(variance_rows(frame))
    series = {"variance": "trained and measured at β", "variance_at_0": "trained at 0, measured at β"}
    parts = {label: rows[rows["quantity"] == quantity] for quantity, label in series.items()}
    return _draw(parts, "tr Cov G, (loss/parameter)²", "Gradient variance against β", _SEEDS)


def quality_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `grid` about the sliced Wasserstein distance, with the fewest steps."""
    rows = of_quantity(frame, "quality")
    rows = rows[rows["metric"] == _METRIC]
    return rows[rows["nfe"] == rows["nfe"].min()]


@styled
def draw_quality(frame: pd.DataFrame) -> Figure:
    """Sliced Wasserstein-1 against the beta that was trained, one line for each set of weights."""
    rows = present(quality_rows(frame))
    parts = {f"{weights} weights": part for weights, part in rows.groupby("weights", sort=False)}
    steps = int(rows["nfe"].iloc[0])
    title = f"Sample quality against β, {steps} step{'s' * (steps > 1)}"
    return _draw(parts, "sliced Wasserstein-1", title, _SEEDS, "0 is best")


def _draw(parts: dict[str, pd.DataFrame], label: str, title: str, *notes: str) -> Figure:
    """A panel for each data set, a line for each part."""
    datasets = list(dict.fromkeys(name for part in parts.values() for name in part["dataset"]))
    columns = min(_COLUMNS, len(datasets))
    figure, axes = grid_of_axes(-(-len(datasets) // columns), columns, 2.7, 2.1, least=7.2)
    for panel, dataset in zip(axes.flat, datasets, strict=False):
        for (name, part), line in zip(parts.items(), LINES, strict=False):
            rows = part[part["dataset"] == dataset].sort_values("beta")
            if len(rows):
                estimate(panel, rows["beta"], rows, line, name)
        panel.set_title(dataset, loc="left", fontweight="bold")
        panel.set_ylim(bottom=0)
        panel.set_xlabel("β")
    for panel in axes[:, 0]:
        panel.set_ylabel(label)
    for panel in axes.flat[len(datasets) :]:
        panel.set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2)
    return finish(figure, title, *notes)
