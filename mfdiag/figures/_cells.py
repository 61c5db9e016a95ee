"""Cells of (r, t), drawn in the triangle r <= t."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mfdiag.figures._style import INK, PAPER, SMALL
from mfdiag.figures._svg import add_tip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["EDGE", "HATCH", "corners", "draw_cell", "has_room", "side_of"]

EDGE = "#999999"
HATCH = "////"
_ROOM = 0.5  # inches that a number needs; narrower cells stay without text
_MOST_BINS = 12  # more would make the figure too large, so that their cells have no numbers
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of sRGB primaries
_DARK = 0.45  # luminance up to which text is white


def corners(r: tuple[float, float], t: tuple[float, float]) -> np.ndarray:
    """Corners [n, 2] of the part of the cell `r` x `t` where r <= t."""
    box = [(r[0], t[0]), (r[0], t[1]), (r[1], t[1]), (r[1], t[0])]
    inside: list[tuple[float, float]] = []
    for start, end in zip(box, box[1:] + box[:1], strict=True):
        if start[0] <= start[1]:
            inside.append(start)
        if (start[0] <= start[1]) != (end[0] <= end[1]):  # every edge has constant r or t, where it crosses r = t
            inside.append((start[0],) * 2 if start[0] == end[0] else (start[1],) * 2)
    return np.array(sorted(set(inside), key=inside.index))


def side_of(bins: int, least: float) -> float:
    """Inches of a triangle's sides, from `least` on, that leave room for a number in each of its cells."""
    return max(least, min(bins, _MOST_BINS) * _ROOM)


def has_room(outline: np.ndarray, side: float) -> bool:
    """Whether a number can be read in a cell of a triangle whose sides are so many inches long."""
    return bool(np.ptp(outline, axis=0).min() * side >= 0.95 * _ROOM)


def draw_cell(
    axes: Axes, outline: np.ndarray, color: np.ndarray, text: str, tip: str, *, hatched: bool = False
) -> None:
    """Draws a filled cell with its number, black or white, whichever is readable.

    Args:
        axes: The panel.
        outline: Corners [n, 2].
        color: Red, green, blue and alpha [4], each in [0, 1].
        text: The number; "" where the cell has no room for it.
        tip: What the cell shows while the pointer is on it.
        hatched: Whether the number is uncertain.
    """
    from matplotlib.patches import Polygon

    ink = INK if float(color[:3] @ _LUMINANCE) > _DARK else PAPER
    fill = tuple(color)
    axes.add_patch(Polygon(outline, facecolor=fill, edgecolor=EDGE, linewidth=0.8))
    if hatched:
        axes.add_patch(Polygon(outline, fill=False, edgecolor=ink, linewidth=0, hatch=HATCH, alpha=0.5))
    add_tip(axes, outline, tip)
    if not text:
        return
    x, y = outline.mean(axis=0)
    axes.text(
        x,
        y,
        text,
        ha="center",
        va="center",
        fontsize=SMALL,
        color=ink,
        zorder=4,
        bbox={"facecolor": fill, "edgecolor": "none", "pad": 0.4} if hatched else None,
    )
