"""benchmarks/following.py: what a training takes over from the monitor, and the table of docs/monitor.md."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def following() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import following

        yield following
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def monitor(values: dict[str, float], moments: list[float]) -> Any:
    """What `Settings.follow` reads of a monitor, at its second measurement."""
    low = np.arange(10) / 10
    rows = [{"step": 1, "quantity": "moment_share", "estimator": "meanflow", "t_low": 0.0, "value": 9.0}]
    rows += [{**rows[0], "step": 2, "t_low": t, "value": value} for t, value in zip(low, moments, strict=True)]
    return SimpleNamespace(frame=pd.DataFrame(rows), value=lambda name, **_: values[name], batch_size=256)


def test_settings_follow_what_was_measured(following: Any) -> None:
    measured = {"noise_scale": 700.4, "tangent_optimum": 1.3}
    own = monitor(measured, [0.1] * 10)
    settings = {name: following.Settings(0.0, 256, name) for name in ("beta", "batch", "times")}
    for one in settings.values():
        one.follow(own)
    assert settings["beta"].beta == 1.0 and settings["beta"].batch == 256
    assert settings["batch"].batch == own.batch_size == 700 and settings["batch"].beta == 0.0
    best = np.sqrt(0.1 * following.SHARES)  # p sqrt(m), where p m is the share of the moment
    np.testing.assert_allclose(settings["times"].shares, (following.SHARES + best / best.sum()) / 2)
    hidden = monitor({"noise_scale": np.nan, "tangent_optimum": np.nan}, [0.1] * 10)
    settings["batch"].follow(hidden)
    settings["beta"].follow(hidden)
    assert settings["batch"].batch == following.BATCHES[1] and settings["beta"].beta == 1.0, "the last one stays"


def test_weights_undo_another_density_of_times(following: Any) -> None:
    torch.manual_seed(0)
    settings = following.Settings(0.0, 200_000, "times")
    settings.shares = np.full(10, 0.1)
    r, t, weight = settings.times()
    assert (r <= t).all() and abs(float((r == t).float().mean()) - 0.25) < 0.01
    for power in (0, 1, 2):  # t is the larger of two uniform times: E t^k = 2 / (k + 2)
        assert abs(float((weight * t**power).mean()) - 2 / (power + 2)) < 0.01


def test_the_page_holds_the_table(following: Any) -> None:
    text = following.PAGE.read_text(encoding="utf-8")
    table = text.partition(following.MARKERS[0])[2].partition(following.MARKERS[1])[0]
    assert table.strip().splitlines() == following.lines(pd.read_csv(following.TABLE))
