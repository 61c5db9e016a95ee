"""Selections of rows of tidy tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mfdiag.tables.selection import by_time, midpoint, of_quantity, over_all_times, overall

NULL = np.nan
ROWS = [  # quantity, value, layer, r_low, r_high, t_low, t_high
    ("variance", 1.0, "all", NULL, NULL, NULL, NULL),
    ("variance", 2.0, "first", NULL, NULL, NULL, NULL),
    ("variance", 3.0, "all", NULL, NULL, 0.5, 1.0),
    ("variance", 4.0, "first", NULL, NULL, 0.5, 1.0),
    ("variance", 5.0, "all", 0.0, 0.5, 0.5, 1.0),
    ("bias2", 6.0, "all", NULL, NULL, NULL, NULL),
    ("bias2", np.inf, "all", NULL, NULL, NULL, NULL),
    ("bias2", NULL, "all", NULL, NULL, NULL, NULL),
]
FRAME = pd.DataFrame(ROWS, columns=["quantity", "value", "layer", "r_low", "r_high", "t_low", "t_high"])


def values(rows: pd.DataFrame) -> list[float]:
    return rows["value"].tolist()


def test_of_quantity_keeps_finite_values() -> None:
    assert values(of_quantity(FRAME, "bias2")) == [6]
    assert values(of_quantity(FRAME, "variance", "bias2")) == [1, 2, 3, 4, 5, 6]


def test_rows_over_everything() -> None:
    variance = of_quantity(FRAME, "variance")
    assert values(over_all_times(variance)) == [1, 2] and values(overall(variance)) == [1]
    assert values(overall(variance.drop(columns=["layer", "r_low", "r_high"]))) == [1, 2]


def test_bins_of_exactly_these_times() -> None:
    assert (
        values(by_time(FRAME, "t")) == [3]
        and values(by_time(FRAME, "r", "t")) == [5]
        and values(by_time(FRAME, "r")) == []
    )
    assert midpoint(by_time(FRAME, "t"), "t").tolist() == [0.75]
