"""Error and bias over the plane (beta, gamma), and the path of the optimum (theory: section 3, MSE_n and c*_n)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from mfdiag.figures.select import of_quantity, overall, select
from mfdiag.figures.style import LINES, finish, grid_of_axes, number, styled

__all__ = ["CORNERS", "draw", "rows"]

CORNERS = {(0.0, 0.0): "MeanFlow", (1.0, 0.0): "EMA tangent", (1.0, 1.0): "distillation"}
_LEAST = 3  # values of beta and of gamma
_MARGIN = 0.06  # of an axis' length, around the grid
_SHADES = LinearSegmentedColormap.from_list("shades", ["#FFFFFF", "#9A9A9A"])  # labels stay legible on the darkest
_INK = LINES[0].color
_PLACE = {"optimum_beta": "x", "optimum_gamma": "y"}


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `sweep` this figure draws: gradient space, whole network, all times; none without a plane.

    A model and setting whose error is known at fewer than three values of beta or of gamma is left out.
    """
    kept = overall(of_quantity(frame, "bias2", "mse", *_PLACE))
    kept = kept[kept["space"] == "gradient"]
    if (kept["quantity"] == "mse").sum() < _LEAST**2:
        return kept.iloc[:0]
    settings = ["run", "checkpoint", "step", "dataset", "proxy", "weighting", "times", "seed"]
    errors = kept[kept["quantity"] == "mse"].groupby(settings, dropna=False)
    return kept
