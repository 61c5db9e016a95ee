"""`mfdiag compare` from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mfdiag.estimators import estimators
from mfdiag.tables import read_table

Run = Callable[..., Any]
QUICK = ("--samples", "128", "--quiet")

MINE = """
from mfdiag.estimators import Estimator

def residual(fields):
    return fields.u - fields.v_c

MINE = Estimator("mine", "trajectory flow matching alone", "none", "u - v_c", residual)
"""


@pytest.fixture
def few() -> tuple[str, ...]:
    names = ("meanflow", "ema_tangent", "flow_matching")
    return tuple(word for name in names for word in ("--estimator", name))


def test_everything_that_can_be_measured(cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = cli("compare", checkpoint, "--samples", "128", "--out", out)
    assert result.code == 0
    for text in ("no teacher was passed (--proxy teacher=PATH)", "head_tangent left out"):
        assert result.err.count(text) == 1
    frame = read_table("compare", out)
    everything = {"meanflow", "ema_tangent", "self_tangent", "alpha_flow", "terminal_velocity", "dispersive"}
    assert everything <= set(frame["estimator"]) and "teacher" not in set(frame["estimator"])
    assert {"layers.0", "all"} <= set(frame["layer"]) and frame["t_low"].nunique() == 5
    for name in ("meanflow", frame[frame["quantity"] == "variance_ratio"].set_index("estimator")["value"].idxmin()):
        assert name in result.out
    left_out = json.loads((out / "manifest.json").read_text())["compare"]["specification"]["left_out"]
    ((reasons),) = left_out.values()
    of_teachers = sorted(name for name, e in estimators().items() if "teacher" in e.needs.networks)
    assert of_teachers in reasons.values()
    assert (out / "figures" / "compare.svg").exists()


def test_a_teacher_brings_its_methods_and_the_ema_stays(
    cli: Run, save: Run, few: tuple[str, ...], tmp_path: Path
) -> None:
    teacher, out = save("teacher", seed=1), tmp_path / "out"
    options = ("--estimator", "teacher", "--estimator", "cmt:2", "--estimator", "ema_tangent", "--by", "none")
    assert cli("compare", save(), *QUICK, *options, "--proxy", f"teacher={teacher}", "--out", out).code == 0
    frame = read_table("compare", out)
    assert set(frame["estimator"]) == {"meanflow", "teacher", "cmt:2", "ema_tangent", "mixture"}
    alone = tmp_path / "alone"
    assert cli("compare", save(), *QUICK, "--estimator", "ema_tangent", "--by", "none", "--out", alone).code == 0
    values = [
        f[(f["estimator"] == "ema_tangent") & (f["quantity"] == "variance") & f["t_low"].isna()]["value"].item()
        for f in (frame, read_table("compare", alone))
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_a_method_of_ones_own(cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    out = tmp_path / "out"
    named = ("--estimator", f"{tmp_path}/mine.py:MINE", "--estimator", "alpha_flow:1")
    result = cli("compare", checkpoint, *QUICK, *named, "--by", "none", "--format", "json", "--out", out)
    frame = pd.DataFrame(json.loads(result.out))
    variance = frame[(frame["quantity"] == "variance") & frame["t_low"].isna()].set_index("estimator")["value"]
    assert variance["mine"] == pytest.approx(variance["alpha_flow:1"], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--estimator", "teacher"), "no teacher was passed (--proxy teacher=PATH)"),
        (("--estimator", "alpha_flo"), "Did you mean 'alpha_flow'"),
        (("--estimator", "mine.py:MINE"), "mine.py does not exist"),
        (("--batch-size", "0"), "--batch-size must be at least 1"),
    ],
)
def test_bad_input(cli: Run, checkpoint: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    result = cli("compare", checkpoint, *QUICK, *options, "--out", tmp_path / "out")
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1


def test_it_goes_on_where_it_stopped(cli: Run, save: Run, few: tuple[str, ...], tmp_path: Path) -> None:
    first, second, out = save("a"), save("b", seed=1), tmp_path / "out"
    assert cli("compare", first, *QUICK, *few, "--out", out).code == 0
    assert cli("compare", first, *QUICK, *few, "--out", out).code == 2
    result = cli("compare", first, second, "--samples", "128", *few, "--resume", "--out", out)
    assert result.code == 0 and f"{first} is measured already" in result.err
    assert read_table("compare", out)["checkpoint"].nunique() == 2
    assert cli("compare", first, *QUICK, "--estimator", "meanflow", "--resume", "--out", out).code == 2


def test_what_changes_no_number(cli: Run, checkpoint: Path, few: tuple[str, ...], tmp_path: Path) -> None:
    values = []
    for k, options in enumerate([(), ("--chunk", "7", "--engine", "reference")]):
        out = tmp_path / str(k)
        done = cli("compare", checkpoint, *QUICK, *few, "--dtype", "float64", *options, "--by", "none", "--out", out)
        assert done.code == 0
        frame = read_table("compare", out)
        values.append(frame[~frame["quantity"].str.startswith("mixture")]["value"])
    pd.testing.assert_series_equal(values[1], values[0], rtol=1e-7, atol=1e-10)
