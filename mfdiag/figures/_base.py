"""What a figure is: its table, the rows it needs, and how to draw them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # matplotlib is imported when a figure is drawn
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["FigureSpec"]


@dataclass(frozen=True)
class FigureSpec:
    """One figure.

    `rows` picks the rows of table `table` that `draw` shows; a figure without rows is not drawn. `draw` takes the whole
    table and raises InputError where there are none. `says` is what the figure shows, one line for the docs.
    `question` is the section of a report that it belongs to: noise, where, remedies, cost, samples, or "" for none.
    """

    name: str
    table: str
    rows: Callable[[pd.DataFrame], pd.DataFrame]
    draw: Callable[[pd.DataFrame], Figure]
    says: str
    question: str = ""
