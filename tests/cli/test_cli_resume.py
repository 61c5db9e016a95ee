"""Results that are already there: refused, replaced, gone on with; also after Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mfdiag.tables import read_table

Run = Callable[..., Any]
QUICK = ("--samples", "80", "--bins", "none")


def test_existing_results_are_kept_unless_told_otherwise(cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    command = ("sweep", checkpoint, *QUICK, "--out", tmp_path / "out")
    assert cli(*command).code == 0
    table = tmp_path / "out" / "sweep.parquet"
    before = table.read_bytes()
    result = cli(*command, "--beta", "0,1")
    assert result.code == 2 and "--overwrite" in result.err and table.read_bytes() == before
    assert cli(*command, "--overwrite", "--resume").code == 2 and table.read_bytes() == before
    assert cli("variance", checkpoint, *QUICK, "--out", tmp_path / "out").code == 0, "another table is no obstacle"
    assert cli(*command, "--overwrite", "--beta", "0,1").code == 0
    assert set(read_table("sweep", tmp_path / "out")["beta"]) == {0, 1}
    assert set(json.loads((tmp_path / "out" / "manifest.json").read_text())) == {"sweep", "variance"}


def test_resume_measures_only_what_is_missing(cli: Run, save: Run, tmp_path: Path) -> None:
    first, second = save("first", 1), save("second", 2, seed=1)
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert cli("variance", first, *QUICK, "--out", out, "--resume").code == 0, "nothing to go on with is no error"
    result = cli("variance", first, second, *QUICK, "--out", out, "--resume")
    assert result.code == 0 and f"{first} is measured already" in result.err
    assert cli("variance", first, second, *QUICK, "--out", whole).code == 0
    for name in ("variance", "samples"):
        pd.testing.assert_frame_equal(read_table(name, out), read_table(name, whole))
    entry = json.loads((out / "manifest.json").read_text())["variance"]
    assert [item["path"] for item in entry["inputs"]] == [str(first), str(second)]
    assert [item["checkpoint"] for item in entry["specification"]["subjects"]] == [str(first), str(second)]
    again = cli("variance", first, second, *QUICK, "--out", out, "--resume", "--chunk", "9")
    assert again.code == 0 and again.err.count("measured already") == 2, "the chunk changes no number"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("--samples", "81"), "samples"),
        (("--seed", "1"), "seed"),
        (("--beta", "0,1"), "beta"),
        (("--weighting", "adaptive:1"), "weighting"),
        (("--weights", "ema"), "weights"),
        (("--dtype", "float64"), "dtype"),
        (("--by", "layer"), "by_layer"),
    ],
)
def test_resume_refuses_other_options(
    changed: tuple[str, str], named: str, cli: Run, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert cli("sweep", checkpoint, *QUICK, "--out", out).code == 0
    before = (out / "sweep.parquet").read_bytes()
    result = cli("sweep", checkpoint, *QUICK, *changed, "--out", out, "--resume")
    assert result.code == 2 and f"with other options ({named})" in result.err
    assert (out / "sweep.parquet").read_bytes() == before


def test_a_changed_checkpoint_is_measured_anew(cli: Run, save: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("sweep", save(step=1), *QUICK, "--out", out).code == 0
    assert cli("sweep", save(step=2), *QUICK, "--out", out, "--resume").code == 0
    frame = read_table("sweep", out)
    assert set(frame["step"]) == {1, 2} and frame["checkpoint_sha256"].nunique() == 2


def test_tables_that_stopped_at_different_checkpoints_agree_after_resuming(cli: Run, save: Run, tmp_path: Path) -> None:
    """A run killed between writing `variance` and `samples`: the checkpoint that only one of them holds is redone."""
    first, second = save("first", 1), save("second", 2)
    out, one = tmp_path / "out", tmp_path / "one"
    assert cli("variance", first, second, *QUICK, "--out", out).code == 0
    assert cli("variance", first, *QUICK, "--out", one).code == 0
    (one / "samples.parquet").replace(out / "samples.parquet")
    result = cli("variance", first, second, *QUICK, "--out", out, "--resume")
    assert result.code == 0 and result.err.count("measured already") == 1
    for name in ("variance", "samples"):
        assert set(read_table(name, out)["step"]) == {1, 2}


def test_figures_of_an_earlier_table_do_not_stay(cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("sweep", checkpoint, *QUICK, "--out", out).code == 0
    assert (out / "figures" / "bias_variance.svg").exists()
    assert cli("sweep", checkpoint, "--times", "grid:2,2", *QUICK[:2], "--out", out, "--overwrite").code == 0
    assert not list((out / "figures").iterdir())


WAITING = """
import time
from pathlib import Path
from mfdiag.models.networks.mlp import MLP

HERE = Path(__file__).parent
calls = 0

class Waiting(MLP):
    def forward(self, x, r, t, y=None):
        global calls
        chunk = len(x) == 10  # not the checks before the pass
        calls += chunk and (HERE / "out" / "manifest.json").exists()  # the first checkpoint is saved
        if calls == 20 and not (HERE / "waiting").exists():
            (HERE / "waiting").touch()  # in the middle of the second: wait for the signal
            time.sleep(300)
        return super().forward(x, r, t, y)

def network():
    return Waiting(2, hidden=8, depth=1)
"""


def test_ctrl_c_keeps_what_is_measured(cli: Run, save: Run, tmp_path: Path) -> None:
    first, second = save("first", 1), save("second", 2, seed=1)
    out = tmp_path / "out"
    (tmp_path / "waiting.py").write_text(WAITING)
    arguments = ["sweep", str(first), str(second), "--samples", "300", "--chunk", "10"]
    arguments += ["--model", f"{tmp_path / 'waiting.py'}:network"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mfdiag", *arguments, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs are born ignoring it
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "waiting").exists():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        shown, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 3
    assert errors.splitlines()[-1] == (
        f"mfdiag: interrupted; 1 of 2 checkpoints and part of the next one are measured and saved in {out}; "
        "resume with --resume."
    )
    assert shown == "" and "Traceback" not in errors
    assert set(read_table("sweep", out)["step"]) == {1}
    assert len(list((out / ".partial").iterdir())) == 1, "what is measured of the second"

    result = cli(*arguments, "--out", out, "--resume")
    assert result.code == 0 and f"{first} is measured already" in result.err
    assert sorted(os.listdir(out)) == ["figures", "manifest.json", "sweep.parquet"]  # noqa: PTH208 - hidden ones count
    assert cli(*arguments, "--out", tmp_path / "whole").code == 0
    pd.testing.assert_frame_equal(read_table("sweep", out), read_table("sweep", tmp_path / "whole"))


def test_ctrl_c_in_any_command_is_exit_code_3(cli: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mfdiag.models.inspection.inspect_checkpoint", interrupted)
    result = cli("inspect", checkpoint)
    assert result == (3, "", "mfdiag: interrupted.\n")
