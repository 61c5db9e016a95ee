"""Error and bias over the plane (beta, gamma), and the path of the optimum (docs/theory.md#plane-optimum)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mfdiag.figures._base import FigureSpec
from mfdiag.figures._select import select
from mfdiag.figures._style import INK, LINES, PAPER, SMALL, finish, grid_of_axes, heading, styled
from mfdiag.numbers import significant
from mfdiag.tables.selection import of_quantity, overall

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CORNERS", "FIGURE", "draw", "rows"]

CORNERS: dict[tuple[float, float], str] = {(0, 0): "MeanFlow", (1, 0): "EMA tangent", (1, 1): "distillation"}
_LEAST_VALUES = 3  # of beta and of gamma, which determine a quadratic
_FINE = 101  # points of each axis between which contours are drawn
_MARGIN = 0.06  # of an axis, around the grid
_MOST_LEVELS = 9
_LABEL_DISTANCE = 0.06  # of an axis; labels closer than this are left out
_FAR = 100  # from this size on, a coefficient has two digits
_DECADES = 2  # below the largest value; smaller values stay white
_LIGHTEST, _DARKEST = PAPER, "#A8A8A8"  # black labels are readable on all shades between
_BOX = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8, "alpha": 0.8}
_COLOR = LINES[0].color
_OPTIMUM = {"optimum_beta": "beta", "optimum_gamma": "gamma"}


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `sweep` in gradient space, of the whole network over all times.

    None without mse on a full grid of at least three values of both beta and gamma.
    """
    moments = overall(of_quantity(frame, "bias2", "mse", *_OPTIMUM))
    moments = moments[moments["space"] == "gradient"]
    errors = moments[moments["quantity"] == "mse"]
    counts = pd.crosstab(errors["beta"], errors["gamma"])
    full = min(counts.shape) >= _LEAST_VALUES and bool((counts * counts.size == len(errors)).all(axis=None))
    return moments if full else moments.iloc[:0]


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One row of panels per checkpoint: n MSE_n of the smallest batch, squared bias, n MSE_n of the largest batch.

    `frame` is table `sweep`. Stars are at the closed-form optimum where the table has it (not with weights), and at the
    lowest point of the grid elsewhere. The path of the optimum is drawn over the bias, which bends it, with intervals.
    Estimates below zero are hatched. Raises InputError where there is nothing to draw.
    """
    selection = select(rows(frame))
    drawn = pd.concat([part for _, part in selection.items])
    negative = (drawn.loc[~drawn["quantity"].isin(_OPTIMUM), "value"] < 0).any()
    closed = drawn["quantity"].isin(_OPTIMUM).any()
    sizes = drawn.loc[drawn["quantity"] == "mse", "batch_size"].astype(int)
    ends = sorted({sizes.min(), sizes.max()})
    figure, axes = grid_of_axes(len(selection.items), 1 + len(ends), 3.2, 3.5)
    for (label, part), panels in zip(selection.items, axes, strict=True):
        errors, optima = part[part["quantity"] == "mse"], _optima(part)
        for panel, n in zip(panels[::2], ends, strict=True):
            surface = _surface(errors[errors["batch_size"] == n]) * n
            _draw_contours(panel, surface)
            _draw_star(panel, surface, optima, n)
            title = f"n MSEₙ for n = {n:,}"
            heading(panel, f"{label}\n{title}" if label and panel is panels[0] else title)
        _draw_contours(panels[1], _surface(part[part["quantity"] == "bias2"]))
        _draw_path(panels[1], optima)
        heading(panels[1], "bias²")
    return finish(
        figure,
        "Error and bias over the plane of β and γ",
        selection.context,
        "Contours in (loss/parameter)²; n MSEₙ is variance + n bias²",
        "Stars and path: closed-form optimum, if it lies inside the axes"
        if closed
        else "Stars: lowest point of the grid",
        "Bars: 95 % intervals" if closed else "",
        "Hatched: estimate below zero" if negative else "",
        selection.note,
    )


def _optima(part: pd.DataFrame) -> pd.DataFrame:
    """c*_n by n: columns beta, gamma and their intervals; without those that are no minimum."""
    minima = part[part["quantity"].isin(_OPTIMUM) & part["status"].isin(["ok", "outside_unit_interval"])]
    by_size = minima.assign(coefficient=minima["quantity"].map(_OPTIMUM)).pivot(
        index="batch_size", columns="coefficient", values=["value", "ci_low", "ci_high"]
    )
    return by_size.dropna().astype(float)


def _surface(part: pd.DataFrame) -> pd.DataFrame:
    """Values by gamma (rows) and beta (columns)."""
    return part.pivot(index="gamma", columns="beta", values="value").astype(float)


def _draw_contours(axes: Axes, surface: pd.DataFrame) -> None:
    """Labeled contours and the named corners; interpolated by parabolas, which is exact without weights."""
    from matplotlib.colors import LinearSegmentedColormap
    from scipy.interpolate import RectBivariateSpline

    gamma, beta = surface.index.to_numpy(float), surface.columns.to_numpy(float)
    x, y = (np.linspace(grid[0], grid[-1], _FINE) for grid in (beta, gamma))
    z = RectBivariateSpline(gamma, beta, surface.to_numpy(), kx=2, ky=2)(y, x)
    levels = _levels(z)
    if len(levels):
        grays = LinearSegmentedColormap.from_list("grays", [_LIGHTEST, _DARKEST])
        shades = grays(np.linspace(0, 1, len(levels) + 1))
        axes.contourf(x, y, z, levels=levels, colors=shades, extend="both")
        lines = axes.contour(x, y, z, levels=levels, colors=INK, linewidths=0.6)
        axes.clabel(lines, fmt=significant, fontsize=SMALL)
    if surface.to_numpy().min() < 0:
        axes.contourf(x, y, z, levels=[z.min() - 1, 0], colors="none", hatches=["////"])
    for axis, grid in ((axes.set_xlim, beta), (axes.set_ylim, gamma)):
        pad = _MARGIN * (grid[-1] - grid[0])
        axis(grid[0] - pad, grid[-1] + pad)
    axes.set(xlabel="β, tangent coefficient", ylabel="γ, target coefficient")
    axes.grid(False)
    for corner, name in CORNERS.items():
        if beta[0] <= corner[0] <= beta[-1] and gamma[0] <= corner[1] <= gamma[-1]:
            _name_corner(axes, corner, name)


def _name_corner(axes: Axes, corner: tuple[float, float], name: str) -> None:
    axes.plot(*corner, "s", color=INK, markersize=4)
    axes.annotate(
        name,
        corner,
        xytext=tuple(np.where(corner, -5, 5)),
        textcoords="offset points",
        ha="right" if corner[0] else "left",
        va="top" if corner[1] else "bottom",
        fontsize=SMALL,
        color=INK,
        bbox=_BOX,
        zorder=6,
    )


def _levels(z: np.ndarray) -> np.ndarray:
    """Round levels, 1, 2 and 5 times powers of ten, over the largest decades of the positive values."""
    if z.max() <= 0:
        return np.array([])
    low = max(z[z > 0].min(), z.max() * 10.0**-_DECADES)
    powers = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(z.max())) + 1)
    ladder = np.outer(10.0**powers, [1, 2, 5]).ravel()
    ladder = ladder[(ladder > low) & (ladder < z.max())]
    return ladder[:: -(-len(ladder) // _MOST_LEVELS) or 1]


def _draw_star(axes: Axes, surface: pd.DataFrame, optima: pd.DataFrame, n: int) -> None:
    if n in optima.index:
        beta, gamma = optima["value"].loc[n].to_numpy()
    else:
        values = surface.to_numpy()
        row, column = divmod(int(values.argmin()), values.shape[1])
        beta, gamma = surface.columns[column], surface.index[row]
        if values[row, column] <= 0:
            axes.plot([], [], " ", label="minimum not measurable")
            return
    axes.plot(
        beta,
        gamma,
        "*",
        markersize=14,
        color=_COLOR,
        markeredgecolor="white",
        label=f"lowest at β = {_short(beta)}, γ = {_short(gamma)}",
        zorder=7,
    )


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < _FAR else significant(value, 2)


def _draw_path(axes: Axes, optima: pd.DataFrame) -> None:
    """The optimum as n grows, marked at powers of ten; n is written where there is room."""
    if optima.empty:
        return
    axes.plot(*optima["value"].to_numpy().T, color=_COLOR, linewidth=1.2, zorder=5)
    tens = optima[np.log10(optima.index.to_numpy(float)) % 1 == 0]
    value, low, high = (tens[name].to_numpy().T for name in ("value", "ci_low", "ci_high"))
    axes.errorbar(
        value[0],
        value[1],
        xerr=[value[0] - low[0], high[0] - value[0]],
        yerr=[value[1] - low[1], high[1] - value[1]],
        fmt="o",
        color=_COLOR,
        markerfacecolor="white",
        elinewidth=0.8,
        zorder=6,
        label=f"optimum (β, γ) for n = {tens.index[0]:,} to {tens.index[-1]:,}",
    )
    labeled: list[np.ndarray] = []
    for n, place in zip(tens.index, value.T, strict=True):
        if all(np.linalg.norm(place - other) > _LABEL_DISTANCE * np.diff(axes.get_xlim()) for other in labeled):
            labeled.append(place)
            axes.annotate(
                f"{n:,}", place, (6, 4), textcoords="offset points", fontsize=SMALL, color=_COLOR, bbox=_BOX, zorder=7
            )


FIGURE = FigureSpec(
    "plane",
    "sweep",
    rows,
    draw,
    says="mean squared error and bias over beta and gamma, and the optimum as the batch grows; "
    "needs three values of each",
    question="cost",
)
