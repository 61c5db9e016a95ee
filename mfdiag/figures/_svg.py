"""What an SVG holds beyond the drawing: values on hover, title, caption, and the box that the panels fill."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CAPTION", "LEGEND", "TITLE", "add_tip", "add_tips", "annotated"]

TITLE, CAPTION = "figure-title", "figure-caption"  # names of the groups of the texts that a page writes itself
LEGEND = "figure-legend"  # name of the group that a page moves to the left, where a narrow screen shows it
_RADIUS = 6.0  # points around a value that show its text
_MARGIN = 4.0  # points around the panels
_POINTS = 72.0  # per inch


class _Tip(NamedTuple):
    """A text at a point [1, 2] or within an outline [n, 2], in the coordinates of the data."""

    place: np.ndarray
    text: str


_TIPS: WeakKeyDictionary[Axes, list[_Tip]] = WeakKeyDictionary()


def add_tip(axes: Axes, place: np.ndarray, text: str) -> None:
    """Shows a text while the pointer is at a place; only in SVG.

    Args:
        axes: The panel.
        place: A point [2] or an outline [n, 2], in the coordinates of the data.
        text: The text.
    """
    _TIPS.setdefault(axes, []).append(_Tip(np.atleast_2d(np.asarray(place, dtype=float)), text))


def add_tips(axes: Axes, x: np.ndarray, y: np.ndarray, texts: list[str]) -> None:
    """`add_tip` for several points.

    Args:
        axes: The panel.
        x: Places from left to right [n].
        y: Places from bottom to top [n].
        texts: The texts [n].
    """
    for place, text in zip(np.column_stack([x, y]), texts, strict=True):
        add_tip(axes, place, text)


def annotated(svg: str, figure: Figure) -> str:
    """The SVG of a figure that was drawn, with its tips and, as attributes, title, caption and box of its panels."""
    crop = " ".join(f"{value:.1f}" for value in _box_of_panels(figure))
    # matplotlib has no public way to the texts that suptitle and supxlabel made
    title, caption = figure.get_suptitle(), figure.get_supxlabel().replace("\n", " ")
    attributes = f'data-crop="{crop}" data-title="{escape(title)}" data-caption="{escape(caption)}"'
    for legend in figure.legends:
        ((left, _),) = _to_points(legend.get_window_extent().get_points()[:1], figure)
        attributes += f' data-legend="{left:.1f}"'
    marks = "\n".join(_mark(axes, tip, figure) for axes in figure.axes for tip in _TIPS.get(axes, []))
    head, _, rest = svg.partition("<svg ")
    body = rest.rpartition("</svg>")[0]
    tips = f'<g class="tips" style="fill: #000000; fill-opacity: 0">\n{marks}\n</g>\n' if marks.strip() else ""
    return f"{head}<svg {attributes} {body}{tips}</svg>\n"


def _to_points(places: np.ndarray, figure: Figure) -> np.ndarray:
    """Pixels [n, 2] from the lower left to points [n, 2] from the upper left, as SVG counts."""
    x, y = (places * (_POINTS / figure.dpi)).T
    return np.column_stack([x, figure.get_figheight() * _POINTS - y])


def _mark(axes: Axes, tip: _Tip, figure: Figure) -> str:
    """An invisible shape with its text; nothing outside the axes."""
    places = axes.transData.transform(tip.place)
    inside = np.isfinite(places).all() and axes.bbox.padded(1).contains(*places.mean(axis=0))
    if not inside:
        return ""
    points, title = _to_points(places, figure), f"<title>{escape(tip.text)}</title>"
    if len(points) == 1:
        return f'<circle cx="{points[0, 0]:.1f}" cy="{points[0, 1]:.1f}" r="{_RADIUS:g}">{title}</circle>'
    outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polygon points="{outline}">{title}</polygon>'


def _box_of_panels(figure: Figure) -> tuple[float, float, float, float]:
    """Left, top, width and height of all panels and legends in points, without the title and the caption."""
    shown = [axes.get_tightbbox() for axes in figure.axes if axes.get_visible()]
    corners = np.array([box.get_points() for box in shown if box is not None])
    corners = np.concatenate([corners, *([legend.get_window_extent().get_points()] for legend in figure.legends)])
    low, high = corners[:, 0].min(axis=0), corners[:, 1].max(axis=0)
    (left, bottom), (right, top) = _to_points(np.array([low, high]), figure)
    return left - _MARGIN, top - _MARGIN, right - left + 2 * _MARGIN, bottom - top + 2 * _MARGIN
