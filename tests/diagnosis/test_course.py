"""Several checkpoints of one run: what changed for good, and when."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from mfdiag.diagnosis.course import changes
from mfdiag.tables.check import conform
from mfdiag.tables.schema import TABLES


def course(values: dict[str, list[float]], width: float = 0.05) -> pd.DataFrame:
    names = [column.name for column in TABLES["doctor"].columns]
    common = {"run": "run", "dataset": "data", "seed": 0, "layer": "all", "n_samples": 1024, "status": "ok"}
    rows = [
        {
            **common,
            "checkpoint": f"step{k}",
            "step": 1000 * (k + 1),
            "estimator": "meanflow",
            "quantity": quantity,
            "value": value,
            "ci_low": value * (1 - width),
            "ci_high": value * (1 + width),
        }
        for quantity, series in values.items()
        for k, value in enumerate(series)
    ]
    return conform("doctor", pd.DataFrame([{name: row.get(name) for name in names} for row in rows]))


def test_a_change_has_the_step_at_which_it_began() -> None:
    found = changes(course({"tail_index": [2.4, 2.3, 2.4, 0.9, 0.8], "velocity_error": [0.1, 0.1, 0.1, 0.1, 0.1]}))
    assert [(c.quantity, c.step_before, c.step) for c in found] == [("tail_index", 3000, 4000)]
    assert "falls from 2.4 to 0.9 between steps 3,000 and 4,000" in found[0].sentence()


def test_what_comes_back_or_overlaps_is_no_change() -> None:
    assert changes(course({"tail_index": [2.4, 0.9, 2.4, 2.3]})) == []
    assert changes(course({"variance": [1.0, 1.05, 1.1, 1.08]}, width=0.2)) == []


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=6), st.floats(0.3, 2.0))
def test_no_change_where_all_intervals_share_a_point(values: list[float], width: float) -> None:
    series = np.array(values) / max(values)  # the interval of the largest one holds no other only if it is narrow
    if (series * (1 + width)).min() >= (series * (1 - width)).max():
        assert changes(course({"variance": list(series)}, width)) == []


def test_one_checkpoint_has_no_course() -> None:
    assert changes(course({"variance": [1.0]})) == []
