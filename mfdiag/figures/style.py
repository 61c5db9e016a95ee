"""One look for all figures: legible in grey, colour-blind safe, the same bytes for the same table."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

__all__ = [
    "GREY",
    "LINES",
    "Line",
    "estimate",
    "finish",
    "grid_of_axes",
    "heading",
    "number",
    "save",
    "share",
    "styled",
]

GREY = "#666666"
_RC: dict[Any, Any] = {  # the stubs of matplotlib list every key as a literal
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 2.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "savefig.dpi": 160,
    "svg.fonttype": "none",
    "svg.hashsalt": "mfdiag",
    "hatch.linewidth": 0.7,
}


@dataclass(frozen=True)
class Line:
    """Colour, dashes and marker of one series; each alone tells the series apart."""

    color: str
    dashes: str
    marker: str


# Luminance L* of 29, 50, 65 and 0: the colours stay apart in print, and under every colour-vision deficiency.
LINES = (
    Line("#004488", "-", "o"),
    Line("#BB5566", "--", "s"),
    Line("#C9962B", "-.", "^"),
    Line("#000000", ":", "D"),
)

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Runs `draw` under the shared style; the caller's own settings are left as they were."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(_RC):
            return draw(*args, **kwargs)

    return wrapper


def grid_of_axes(
    rows: int, columns: int, width: float, height: float, *, least: float = 0, sharey: bool | Literal["row"] = False
) -> tuple[Figure, np.ndarray]:
    """A figure of panels of about `width` x `height` inches each, and its axes as an object array [rows, columns].

    `least` is the figure's own least width, where title and legend stand side by side.
    """
    figure = Figure(
        figsize=(max(columns * width, least), rows * height + 0.6),
        layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08),
    )
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=sharey)


def estimate(axes: Axes, x: pd.Series, rows: pd.DataFrame, line: Line, label: str) -> None:
    """A series: its values as a line with markers, its 95 % interval as a band. `rows` are in the order of `x`."""
    stride = 1 if len(rows) <= 12 else 3  # apart from series to series, so that equal curves both show
    axes.plot(
        x.to_numpy(),
        rows["value"].to_numpy(),
        color=line.color,
        linestyle=line.dashes,
        marker=line.marker,
        markevery=(LINES.index(line) % stride, stride),
        markerfacecolor="white",
        label=label,
        zorder=3,
    )
    axes.fill_between(
        x.to_numpy(), rows["ci_low"].to_numpy(), rows["ci_high"].to_numpy(), color=line.color, alpha=0.18, linewidth=0
    )


def heading(axes: Axes, title: str, columns: int = 1) -> None:
    """The legend of a panel above it, where it can hide no data, with the panel's title as its head."""
    handles, labels = axes.get_legend_handles_labels()
    legend = axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        title=title or None,
        ncols=columns,
        alignment="left",
        borderaxespad=0.3,
    )
    legend.get_title().set_fontweight("bold")


def finish(figure: Figure, title: str, *notes: str) -> Figure:
    """Title above, and below it all the caption: what the rows have in common and how to read the marks."""
    figure.suptitle(title, x=0.012, ha="left", fontsize=11, fontweight="bold")
    text = ". ".join(note for note in notes if note)
    width = int(figure.get_figwidth() * 16.5)  # characters of 7.5 pt that fit in one line
    figure.supxlabel(textwrap.fill(text + ".", width), x=0.012, ha="left", fontsize=7.5, color=GREY)
    return figure


def save(figure: Figure, path: Path, kind: str) -> None:
    """Writes the figure as "svg" or "png"; the same figure gives the same SVG, which carries no date."""
    with mpl.rc_context(_RC):
        figure.savefig(path, format=kind, metadata={"Date": None} if kind == "svg" else None)


def share(part: float) -> str:
    """A share as a percentage with one decimal: 19.6 %."""
    return f"{100 * part:.1f} %"


def number(value: float) -> str:
    """Three significant digits, thousands separated: 0.015, 1.71, 167,000; an exponent from 1e9 on; ∞ and ? (NaN)."""
    if not np.isfinite(value):
        return "∞" if value > 0 else "?"
    rounded = float(f"{value:.3g}")
    return (f"{rounded:,.0f}" if 100 <= abs(rounded) < 1e9 else f"{rounded:.3g}").replace("-", "−")
