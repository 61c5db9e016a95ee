"""Sample quality: each metric against the number of steps or, for many models, model by model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mfdiag.figures._base import FigureSpec
from mfdiag.figures._select import select
from mfdiag.figures._style import LINES, SMALL, Line, common_legend, finish, grid_of_axes, styled
from mfdiag.tables.selection import of_quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURE", "draw", "rows"]

_MOST_MODELS = 40  # one row each; more do not fit a page
_COLUMNS = 3
_LETTER_WIDTH = 0.072  # inches, in the label of a row


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `quality` with means over seeds where there are any, else with each model's values."""
    means = of_quantity(frame, "mean_over_seeds")
    values = of_quantity(frame, "value") if means.empty else means
    return values[values["nfe"].notna()].sort_values("nfe", kind="stable")


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One panel for each metric: a line over NFE for each model and set of weights, or, above four, a row for each.

    `frame` is table `quality`. Raises InputError where there is nothing to draw.
    """
    selection = select(rows(frame), limit=_MOST_MODELS)
    series = [
        (", ".join(filter(None, [label, str(weights)])), part)
        for label, model in selection.items
        for weights, part in model.groupby("weights", dropna=False, sort=False)
    ]
    metrics = list(dict.fromkeys(frame["metric"]))
    columns = min(_COLUMNS, len(metrics))
    as_lines = len(series) <= len(LINES)
    height = 2.1 if as_lines else 0.8 + 0.19 * len(series)
    least = 5.4 if as_lines else 0
    figure, axes = grid_of_axes(-(-len(metrics) // columns), columns, 2.7, height, least=least, sharey=not as_lines)
    if not as_lines:
        figure.set_figwidth(figure.get_figwidth() + _LETTER_WIDTH * max(len(label) for label, _ in series))
    for panel, metric in zip(axes.flat, metrics, strict=False):
        of_metric = [(label, part[part["metric"] == metric]) for label, part in series]
        (_draw_by_steps if as_lines else _draw_by_model)(panel, of_metric)
        panel.set_title(metric.replace("_", " "), loc="left", fontweight="bold")
    for panel in axes.flat[len(metrics) :]:
        panel.set_visible(False)
    common_legend(figure, axes)
    return finish(
        figure,
        "Sample quality",
        selection.context,
        "Bars: 95 % intervals" + (" over seeds" if (frame["quantity"] == "mean_over_seeds").any() else ""),
        "Best value: 0 for distances, 1 for precision, recall, density and coverage",
        selection.note,
    )


def _draw_by_steps(axes: Axes, series: list[tuple[str, pd.DataFrame]]) -> None:
    """A line for each series, side by side at each number of steps."""
    steps = sorted({int(nfe) for _, part in series for nfe in part["nfe"]})
    for k, ((label, part), line) in enumerate(zip(series, LINES, strict=False)):
        shift = 0.08 * (k - (len(series) - 1) / 2)
        place = part["nfe"].map(steps.index).to_numpy(float) + shift
        style = _style(line, label)
        axes.errorbar(place, part["value"].to_numpy(), yerr=_errors(part), linestyle=line.dashes, **style)
    axes.set_xticks(range(len(steps)), [str(nfe) for nfe in steps])
    axes.set(xlabel="NFE", xlim=(-0.4, len(steps) - 0.6))


def _draw_by_model(axes: Axes, series: list[tuple[str, pd.DataFrame]]) -> None:
    """A row for each series, a mark for each of the first numbers of steps."""
    together = pd.concat([part.assign(row=k) for k, (_, part) in enumerate(series)])
    for (nfe, part), line in zip(together.groupby("nfe"), LINES, strict=False):
        style = _style(line, f"NFE {nfe}")
        axes.errorbar(part["value"].to_numpy(), part["row"], xerr=_errors(part), linestyle="none", **style)
    axes.set_yticks(range(len(series)), [label for label, _ in series], fontsize=SMALL)
    axes.set_ylim(len(series) - 0.5, -0.5)


def _style(line: Line, label: str) -> dict[str, Any]:
    return {
        "color": line.color,
        "marker": line.marker,
        "markerfacecolor": "white",
        "elinewidth": 1,
        "capsize": 2,
        "label": label,
        "zorder": 3,
    }


def _errors(rows: pd.DataFrame) -> np.ndarray:
    """Lengths [2, n] of the two sides of each interval."""
    sides = np.stack([rows["value"] - rows["ci_low"], rows["ci_high"] - rows["value"]])
    return sides.clip(0)  # rounding may leave a value of 1 just outside


FIGURE = FigureSpec(
    "quality",
    "quality",
    rows,
    draw,
    says="distances between samples and data, against the number of steps or by model",
    question="samples",
)
