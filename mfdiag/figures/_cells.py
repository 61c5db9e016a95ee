"""Cells of (r, t), drawn in the triangle r <= t."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["EDGE", "HATCH", "corners", "draw_cell"]

EDGE = "#999999"
HATCH = "////"
_SMALLEST_FONT = 3.0  # points; below it a cell stays without text
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


def draw_cell(
    axes: Axes, outline: np.ndarray, color: np.ndarray, text: str, font_size: float, *, hatched: bool = False
) -> None:
    """Draws a filled cell with its number, black or white, whichever is readable.

    Args:
        axes: The panel.
        outline: Corners [n, 2].
        color: Red, green, blue and alpha [4], each in [0, 1].
        text: The number; left out where `font_size` is too small to read.
        font_size: In points.
        hatched: Whether the number is uncertain.
    """
    from matplotlib.patches import Polygon

    ink = "black" if float(color[:3] @ _LUMINANCE) > _DARK else "white"
    fill = tuple(color)
    axes.add_patch(Polygon(outline, facecolor=fill, edgecolor=EDGE, linewidth=0.8))
    if hatched:
        axes.add_patch(Polygon(outline, fill=False, edgecolor=ink, linewidth=0, hatch=HATCH, alpha=0.5))
    if font_size < _SMALLEST_FONT:
        return
    x, y = outline.mean(axis=0)
    axes.text(
        x,
        y,
        text,
        ha="center",
        va="center",
        fontsize=font_size,
        color=ink,
        zorder=4,
        bbox={"facecolor": fill, "edgecolor": "none", "pad": 0.0} if hatched else None,
    )
