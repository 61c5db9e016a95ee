"""Which coefficient is best, and which was predicted: beta*_n for several n beside the best trained beta."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mfdiag.figures.select import of_quantity, present
from mfdiag.figures.style import GREY, LINES, Line, finish, grid_of_axes, heading, number, styled

__all__ = ["draw", "rows"]

_FARTHEST = (-1.0, 3.0)  # beta: what lies beyond is drawn at the edge
_BEST = (LINES[3], Line(GREY, "-", "s"))


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Optima and best betas of table `grid`, where there are both."""
    found = of_quantity(frame, "optimum", "best_beta")
    best = found["quantity"] == "best_beta"
    found = found[~best | ((found["metric"] == "sliced_wasserstein") & (found["nfe"] == found["nfe"].min()))]
    return found if found["quantity"].nunique() == 2 else found.iloc[:0]


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One row for each data set: marks for beta*_n of each n, and above them the best beta of each set of weights."""
    found = present(rows(frame))
    datasets = list(dict.fromkeys(found["dataset"]))
    figure, axes = grid_of_axes(1, 1, 6.4, max(1.9, 0.9 + 0.5 * len(datasets)))
    panel: Axes = axes[0, 0]
    optima, best = (found[found["quantity"] == name] for name in ("optimum", "best_beta"))
    sizes = sorted(set(optima["batch_size"]))
    series = [(f"predicted, n = {number(n)}", optima[optima["batch_size"] == n]) for n in sizes]
    offset = np.linspace(-0.3, 0.3, len(series) + best["weights"].nunique())
    for (label, part), line, shift in zip(series, LINES, offset, strict=False):
        _marks(panel, part, datasets, shift, line, label, filled=False)
    for (weights, part), line, shift in zip(best.groupby("weights"), _BEST, offset[len(series) :], strict=False):
        _marks(panel, part, datasets, shift, line, f"best by samples, {weights} weights", filled=True)
    panel.set_yticks(range(len(datasets)), datasets)
    panel.set_ylim(len(datasets) - 0.5, -0.5)
    for edge in (0, 1):
        panel.axvline(edge, color=GREY, linewidth=0.8)
    panel.set_xlabel("β")
    heading(panel, "", columns=2)
    return finish(
        figure,
        "Predicted and best tangent coefficient β",
        "Open: batch-aware optimum β*ₙ of the models trained at β = 0, with 95 % interval over seeds",
        "Filled: trained β of least sliced Wasserstein distance, with the range not told from it by a paired t test",
    )


def _marks(
    axes: Axes, part: pd.DataFrame, datasets: list[str], shift: float, line: Line, label: str, *, filled: bool
) -> None:
    place = part["dataset"].map(datasets.index) + shift
    low, high = (part[name].clip(*_FARTHEST) for name in ("ci_low", "ci_high"))
    axes.hlines(place, low, high, color=line.color, linewidth=1.2)
    axes.plot(
        part["value"].clip(*_FARTHEST),
        place,
        line.marker,
        color=line.color,
        markerfacecolor=line.color if filled else "white",
        label=label,
        zorder=3,
    )
