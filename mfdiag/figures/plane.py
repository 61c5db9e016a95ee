"""Error and bias over the plane (beta, gamma), and the path of the optimum (theory: section 3, MSE_n and c*_n)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from scipy.interpolate import RectBivariateSpline

from mfdiag.figures.select import of_quantity, overall, select
from mfdiag.figures.style import LINES, finish, grid_of_axes, heading, number, styled

__all__ = ["CORNERS", "draw", "rows"]

CORNERS = {(0, 0): "MeanFlow", (1, 0): "EMA tangent", (1, 1): "distillation"}
_LEAST = 3  # values of beta and of gamma, which determine a quadratic
_FINE = 101  # points of each axis between which contours are drawn
_MARGIN = 0.06  # of an axis, around the grid
_LEVELS = 9
_APART = 0.06  # of an axis
_DECADES = 2  # below the largest value; what is smaller is left white
_SHADES = LinearSegmentedColormap.from_list("shades", ["#FFFFFF", "#A8A8A8"])  # black labels are legible on all
_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8}
_COLOR = LINES[0].color
_OPTIMUM = {"optimum_beta": "beta", "optimum_gamma": "gamma"}


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `sweep` this figure draws: gradient space, whole network, all times.

    None without mse on a full grid of at least three values of both beta and gamma.
    """
    kept = overall(of_quantity(frame, "bias2", "mse", *_OPTIMUM))
    kept = kept[kept["space"] == "gradient"]
    errors = kept[kept["quantity"] == "mse"]
    grid = pd.crosstab(errors["beta"], errors["gamma"])
    enough = min(grid.shape) >= _LEAST and bool((grid * grid.size == len(errors)).all(axis=None))
    return kept if enough else kept.iloc[:0]


@styled
def draw(frame: pd.DataFrame) -> Figure:
    """One row of panels per checkpoint: n MSE_n of the smallest batch, squared bias, n MSE_n of a larger largest batch.

    `frame` is table `sweep`. Stars are at the closed-form optimum where the table has it (not under weights) and at the
    lowest point of the grid elsewhere; the path of the optimum with its intervals runs over the bias, which bends it.
    Estimates below zero are hatched. Raises InputError where there is nothing to draw.
    """
    chosen = select(rows(frame))
    drawn = pd.concat([part for _, part in chosen.items])
    negative = (drawn.loc[~drawn["quantity"].isin(_OPTIMUM), "value"] < 0).any()
    closed = drawn["quantity"].isin(_OPTIMUM).any()
    sizes = drawn.loc[drawn["quantity"] == "mse", "batch_size"].astype(int)
    ends = sorted({sizes.min(), sizes.max()})
    figure, axes = grid_of_axes(len(chosen.items), 1 + len(ends), 3.7, 3.9)
    for (label, part), panels in zip(chosen.items, axes, strict=True):
        errors, optima = part[part["quantity"] == "mse"], _optima(part)
        for panel, n in zip(panels[::2], ends, strict=True):
            surface = _surface(errors[errors["batch_size"] == n]) * n
            _contours(panel, surface)
            _star(panel, surface, optima, n)
            title = f"n MSEₙ for n = {n:,}"
            heading(panel, f"{label}\n{title}" if label and panel is panels[0] else title)
        _contours(panels[1], _surface(part[part["quantity"] == "bias2"]))
        _path(panels[1], optima)
        heading(panels[1], "bias²")
    return finish(
        figure,
        "Error and bias over the plane of tangent and target coefficients",
        chosen.context,
        "Contours in (loss/parameter)²; n MSEₙ is variance + n bias²",
        "Stars and path: closed-form optimum, where inside the axes" if closed else "Stars: lowest point of the grid",
        "Bars: 95 % intervals" if closed else "",
        "Hatched: estimate below zero" if negative else "",
        chosen.note,
    )


def _optima(part: pd.DataFrame) -> pd.DataFrame:
    """c*_n by n: columns beta, gamma and their intervals; without those that are no minimum."""
    found = part[part["quantity"].isin(_OPTIMUM) & part["status"].isin(["ok", "outside_unit_interval"])]
    both = found.assign(which=found["quantity"].map(_OPTIMUM)).pivot(
        index="batch_size", columns="which", values=["value", "ci_low", "ci_high"]
    )
    return both.dropna().astype(float)


def _surface(part: pd.DataFrame) -> pd.DataFrame:
    """Values by gamma (rows) and beta (columns)."""
    return part.pivot(index="gamma", columns="beta", values="value").astype(float)


def _contours(axes: Axes, surface: pd.DataFrame) -> None:
    """Labelled contours, and the named corners; interpolated by parabolas, which is exact without weights."""
    gamma, beta = surface.index.to_numpy(float), surface.columns.to_numpy(float)
    x, y = (np.linspace(grid[0], grid[-1], _FINE) for grid in (beta, gamma))
    z = RectBivariateSpline(gamma, beta, surface.to_numpy(), kx=2, ky=2)(y, x)
    levels = _levels(z)
    if len(levels):
        shades = _SHADES(np.linspace(0, 1, len(levels) + 1))
        axes.contourf(x, y, z, levels=levels, colors=shades, extend="both")
        lines = axes.contour(x, y, z, levels=levels, colors="black", linewidths=0.6)
        axes.clabel(lines, fmt=number, fontsize=7)
    if surface.to_numpy().min() < 0:
        axes.contourf(x, y, z, levels=[z.min() - 1, 0], colors="none", hatches=["////"])
    for axis, grid in ((axes.set_xlim, beta), (axes.set_ylim, gamma)):
        pad = _MARGIN * (grid[-1] - grid[0])
        axis(grid[0] - pad, grid[-1] + pad)
    axes.set(xlabel="β, tangent coefficient", ylabel="γ, target coefficient")
    axes.grid(False)
    for corner, name in CORNERS.items():
        if beta[0] <= corner[0] <= beta[-1] and gamma[0] <= corner[1] <= gamma[-1]:
            axes.plot(*corner, "s", color="black", markersize=4)
            away = np.where(corner, -5, 5)
            axes.annotate(
                name,
                corner,
                xytext=tuple(away),
                textcoords="offset points",
                ha="right" if corner[0] else "left",
                va="top" if corner[1] else "bottom",
                fontsize=7.5,
                bbox=_BOX,
                zorder=6,
            )


def _levels(z: np.ndarray) -> np.ndarray:
    """Round levels, 1, 2 and 5 times powers of ten, over the last decades of what is above zero."""
    if z.max() <= 0:
        return np.array([])
    low = max(z[z > 0].min(), z.max() * 10.0**-_DECADES)
    powers = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(z.max())) + 1)
    ladder = np.outer(10.0**powers, [1, 2, 5]).ravel()
    ladder = ladder[(ladder > low) & (ladder < z.max())]
    return ladder[:: -(-len(ladder) // _LEVELS) or 1]


def _star(axes: Axes, surface: pd.DataFrame, optima: pd.DataFrame, n: int) -> None:
    if n in optima.index:
        beta, gamma = optima["value"].loc[n].to_numpy()
    else:
        values = surface.to_numpy()
        row, column = divmod(int(values.argmin()), values.shape[1])
        beta, gamma = surface.columns[column], surface.index[row]
        if values[row, column] <= 0:
            axes.plot([], [], " ", label="minimum not resolved")
            return
    axes.plot(
        beta,
        gamma,
        "*",
        markersize=14,
        color=_COLOR,
        markeredgecolor="white",
        label=f"least at β = {beta:.2f}, γ = {gamma:.2f}",
        zorder=7,
    )


def _path(axes: Axes, optima: pd.DataFrame) -> None:
    """The optimum as n grows, marked at powers of ten; n is written where the marks are apart."""
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
        label=f"best (β, γ) for n = {tens.index[0]:,} to {tens.index[-1]:,}",
    )
    written: list[np.ndarray] = []
    for n, place in zip(tens.index, value.T, strict=True):
        if all(np.linalg.norm(place - other) > _APART * np.diff(axes.get_xlim()) for other in written):
            written.append(place)
            axes.annotate(
                f"{n:,}", place, (6, 4), textcoords="offset points", fontsize=7, color=_COLOR, bbox=_BOX, zorder=7
            )
