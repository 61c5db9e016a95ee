"""One look for all figures: readable in gray and with color blindness, the same bytes for the same table.

matplotlib takes half a second to import, so it is imported by what draws, not by this module.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec

import numpy as np
import pandas as pd

from mfdiag.figures._svg import CAPTION, LEGEND, TITLE, add_tips, annotated
from mfdiag.numbers import significant, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "GRAY",
    "INK",
    "LINES",
    "PAPER",
    "SMALL",
    "Line",
    "common_legend",
    "estimate",
    "finish",
    "from_zero",
    "grid_of_axes",
    "heading",
    "hover",
    "log_axis",
    "save",
    "styled",
]

GRAY = "#666666"
INK, PAPER = "#010101", "#fefefe"  # on shades that stay as they are when a dark page exchanges black and white
SMALL = 8.5  # points of the smallest text, 11.3 pixels on a screen
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
    "legend.fontsize": SMALL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.handlelength": 2.0,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "savefig.dpi": 160,
    "svg.fonttype": "none",
    "svg.hashsalt": "mfdiag",
    "pdf.fonttype": 42,
    "hatch.linewidth": 0.7,
}
_TITLE_HEIGHT = 0.6  # inches, for title and caption
_DECADES_WITHOUT_STEPS = 50  # ratio of the ends of a logarithmic axis from which powers of ten alone are labeled
_DENSE = 12  # points from which markers are thinned out
_CAPTION_LETTERS = 14.5  # per inch, at SMALL


@dataclass(frozen=True)
class Line:
    """Color, dashes and marker of one series; each of them alone distinguishes the series."""

    color: str
    dashes: str
    marker: str


# Luminance L* of 29, 50, 65 and 0: the colors differ in print and with every kind of color blindness.
LINES = (
    Line("#004488", "-", "o"),
    Line("#BB5566", "--", "s"),
    Line("#C9962B", "-.", "^"),
    Line("#000000", ":", "D"),
)

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Runs `draw` with the shared style; the caller's own settings stay unchanged."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        import matplotlib as mpl

        with mpl.rc_context(_RC):
            return draw(*args, **kwargs)

    return wrapper


def grid_of_axes(
    rows: int, columns: int, width: float, height: float, *, least: float = 0, sharey: bool | Literal["row"] = False
) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of panels.

    Args:
        rows: Panels from top to bottom.
        columns: Panels from left to right.
        width: Approximate width of a panel in inches.
        height: Approximate height of a panel in inches.
        least: Minimum width of the figure in inches, where title and legend stand side by side.
        sharey: As in `Figure.subplots`.

    Returns:
        The figure, and its axes as an object array [rows, columns].
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(
        figsize=(max(columns * width, least), rows * height + _TITLE_HEIGHT),
        layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08),
    )
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=sharey)


def estimate(axes: Axes, x: pd.Series, rows: pd.DataFrame, line: Line, label: str) -> None:
    """Draws a series: values as a line with markers, 95 % intervals as a band.

    Args:
        axes: The panel.
        x: Positions, one for each row.
        rows: Tidy rows in the order of `x`.
        line: Color, dashes and marker.
        label: Text for the legend.
    """
    stride = 1 if len(rows) <= _DENSE else 3  # offset from series to series, so that equal curves both show
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
    hover(axes, x.to_numpy(), rows["value"].to_numpy(), rows, label.partition(" (")[0])


def hover(axes: Axes, x: np.ndarray, y: np.ndarray, rows: pd.DataFrame, label: str) -> None:
    """Shows the value and interval of each row while the pointer is at (x, y).

    Args:
        axes: The panel.
        x: Places from left to right [n].
        y: Places from bottom to top [n].
        rows: Tidy rows [n].
        label: Name of the series.
    """
    values = zip(rows["value"], rows["ci_low"], rows["ci_high"], strict=True)
    texts = [
        f"{label} at {significant(place)}: {with_interval(*value)}" for place, value in zip(x, values, strict=True)
    ]
    add_tips(axes, x, y, texts)


def heading(axes: Axes, title: str, columns: int = 1) -> None:
    """Puts the legend above the panel, where it hides no data, under the panel's title.

    Args:
        axes: The panel.
        title: Title of the panel; "" for none.
        columns: Columns of the legend.
    """
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


def common_legend(figure: Figure, axes: np.ndarray, columns: int = 2) -> None:
    """Puts one legend for all panels beside the figure's title.

    Args:
        figure: The figure.
        axes: Its panels [rows, columns]; the first has every series.
        columns: Columns of the legend.
    """
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=columns).set_gid(LEGEND)


def finish(figure: Figure, title: str, *notes: str) -> Figure:
    """Adds the title above and, below, a caption: what the rows have in common and how to read the marks."""
    figure.suptitle(title, x=0.012, ha="left", fontsize=11, fontweight="bold", gid=TITLE)
    text = ". ".join(note for note in notes if note)
    width = int(figure.get_figwidth() * _CAPTION_LETTERS)
    figure.supxlabel(textwrap.fill(text + ".", width), x=0.012, ha="left", fontsize=SMALL, color=GRAY, gid=CAPTION)
    return figure


def from_zero(axes: Axes) -> None:
    """Starts the vertical axis at zero, unless curves reach below."""
    if axes.dataLim.y0 >= 0:
        axes.set_ylim(bottom=0)


def log_axis(axis: Axis) -> None:
    """Makes an axis logarithmic, unless nothing on it is positive; raised exponents would be too small to read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    horizontal = axis is axis.axes.xaxis
    if (axis.axes.dataLim.x1 if horizontal else axis.axes.dataLim.y1) <= 0:
        return
    (axis.axes.set_xscale if horizontal else axis.axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(10, subs=(1.0,), numticks=8))
    low, high = axis.get_view_interval()
    if low > 0 and high < _DECADES_WITHOUT_STEPS * low:
        axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: significant(value)))
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, path: Path, kind: str) -> None:
    """Writes the figure.

    Args:
        figure: A finished figure.
        path: The file to write.
        kind: "svg", "png" or "pdf". The same figure gives the same SVG and PDF, which carry no date.
    """
    import matplotlib as mpl

    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with mpl.rc_context(_RC):
        figure.savefig(path, format=kind, metadata=dates.get(kind))
        figure.set_layout_engine("none")  # the next format keeps the places that this one computed
        if kind == "svg":
            path.write_text(annotated(path.read_text(encoding="utf-8"), figure), encoding="utf-8")
