"""Loss, gradient norm and, if measured, gradient variance and optimal beta against the training step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mfdiag.figures._base import FigureSpec
from mfdiag.figures._select import nonempty
from mfdiag.figures._style import LINES, common_legend, finish, grid_of_axes, styled
from mfdiag.tables.selection import of_quantity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURE", "draw", "rows"]

_YLABELS = {
    "loss": "loss",
    "grad_norm": "gradient norm",
    "variance": "gradient variance",
    "optimum": "optimal tangent coefficient β*",
}


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `training` of the first data set and loss, at no more than four coefficients."""
    courses = of_quantity(frame, *_YLABELS)
    if courses.empty:
        return courses
    courses = courses[
        (courses["dataset"] == courses["dataset"].iloc[0]) & (courses["gamma"] == courses["gamma"].iloc[0])
    ]
    courses = courses[courses["anchor"] == courses["anchor"].iloc[0]]
    betas = sorted(courses["beta"].unique())
    evenly = sorted({round(i * (len(betas) - 1) / (len(LINES) - 1)) for i in range(len(LINES))})
    courses = courses[courses["beta"].isin([betas[i] for i in evenly])]
    return courses if courses["step"].nunique() > 1 else courses.iloc[:0]


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """A panel for each quantity; for each beta a line, the mean over seeds, and a band, their range.

    `frame` is table `training`. Raises InputError where there is nothing to draw.
    """
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    courses = nonempty(rows(frame))
    quantities = [name for name in _YLABELS if name in set(courses["quantity"])]
    figure, axes = grid_of_axes(1, len(quantities), 2.9, 2.5)
    for panel, quantity in zip(axes[0], quantities, strict=True):
        by_beta = courses[courses["quantity"] == quantity].groupby("beta")
        for (beta, course), line in zip(by_beta, LINES, strict=False):
            over_seeds = course.groupby("step")["value"]
            mean = over_seeds.mean()
            panel.plot(mean.index, mean, color=line.color, linestyle=line.dashes, label=f"β = {beta:g}")
            panel.fill_between(
                mean.index, over_seeds.min(), over_seeds.max(), color=line.color, alpha=0.18, linewidth=0
            )
        panel.set(xlabel="step", ylabel=_YLABELS[quantity])
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    common_legend(figure, axes, columns=4)
    shown, total = courses["cell"].nunique(), frame["cell"].nunique()
    return finish(
        figure,
        "Course of training",
        str(courses["dataset"].iloc[0]),
        "Lines: means over training seeds. Bands: their range" if courses["seed"].nunique() > 1 else "",
        f"Showing {shown} of {total} models" if shown < total else "",
    )


FIGURE = FigureSpec(
    "training_course",
    "training",
    rows,
    draw,
    says="loss, gradient norm, gradient variance and optimal beta against the training step",
    question="noise",
)
