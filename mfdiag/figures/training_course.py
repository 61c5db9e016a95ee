"""The course of training: loss, gradient norm, and, where they were measured, gradient variance and optimal beta."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mfdiag.figures.select import of_quantity, present
from mfdiag.figures.style import LINES, finish, grid_of_axes, styled

__all__ = ["draw", "rows"]

_PANELS = {
    "loss": "loss",
    "grad_norm": "gradient norm",
    "variance": "gradient variance, tr Cov G",
    "optimum": "optimal tangent coefficient β*",
}


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `training` this figure draws: the first data set and loss, at most four coefficients."""
    kept = of_quantity(frame, *_PANELS)
    if kept.empty:
        return kept
    kept = kept[(kept["dataset"] == kept["dataset"].iloc[0]) & (kept["gamma"] == kept["gamma"].iloc[0])]
    kept = kept[kept["anchor"] == kept["anchor"].iloc[0]]
    betas = sorted(kept["beta"].unique())
    spread = sorted({round(i * (len(betas) - 1) / (len(LINES) - 1)) for i in range(len(LINES))})
    kept = kept[kept["beta"].isin([betas[i] for i in spread])]
    return kept if kept["step"].nunique() > 1 else kept.iloc[:0]


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """A panel for each quantity; a line for each beta, the mean over seeds, with the band from least to largest."""
    found = present(rows(frame))
    quantities = [name for name in _PANELS if name in set(found["quantity"])]
    figure, axes = grid_of_axes(1, len(quantities), 2.9, 2.5)
    for panel, quantity in zip(axes[0], quantities, strict=True):
        part = found[found["quantity"] == quantity]
        for (beta, course), line in zip(part.groupby("beta"), LINES, strict=False):
            over = course.groupby("step")["value"]
            mean = over.mean()
            panel.plot(mean.index, mean, color=line.color, linestyle=line.dashes, label=f"β = {beta:g}")
            panel.fill_between(mean.index, over.min(), over.max(), color=line.color, alpha=0.18, linewidth=0)
        panel.set(xlabel="step", ylabel=_PANELS[quantity])
        panel.xaxis.set_major_locator(MaxNLocator(4))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=4)
    count = found["cell"].nunique()
    note = "Bands: least to largest over training seeds" if found["seed"].nunique() > 1 else ""
    left = frame["cell"].nunique() - count
    return finish(
        figure,
        "Course of training",
        str(found["dataset"].iloc[0]),
        note,
        f"Showing {count} of {count + left} models" if left else "",
    )
