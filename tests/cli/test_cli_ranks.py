"""`torchrun -m mfdiag ...`: the tables of one process, one voice, and what is left where a process dies."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mfdiag.tables import read_table

Run = Callable[..., Any]
NUMBERS = ["value", "std_error", "ci_low", "ci_high"]


def torchrun(*arguments: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """`torchrun -m mfdiag` with these arguments; torchrun's own log is not mfdiag's."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run([*command, "-m", "mfdiag", *map(str, arguments)], capture_output=True, text=True, timeout=100)


def own_lines(errors: str) -> list[str]:
    """The lines of stderr that an mfdiag that ends with an error writes."""
    return [line for line in errors.splitlines() if line.startswith("mfdiag: ")]


def assert_same_table(name: str, out: Path, other: Path) -> None:
    actual, expected = read_table(name, out), read_table(name, other)
    pd.testing.assert_frame_equal(actual.drop(columns=NUMBERS), expected.drop(columns=NUMBERS))
    for column in NUMBERS:
        np.testing.assert_allclose(actual[column], expected[column], rtol=1e-12, atol=1e-15)


def test_two_processes_write_the_tables_of_one(cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    command = ("variance", checkpoint, "--samples", 300, "--bins", "2,2", "--dtype", "float64")
    both, one = tmp_path / "both", tmp_path / "one"
    shown = torchrun(*command, "--out", both)
    assert shown.returncode == 0, shown.stderr
    alone = cli(*command, "--out", one)
    assert shown.stdout == alone.out and shown.stderr.count("tables: ") == 1
    for name in ("variance", "samples"):
        assert_same_table(name, both, one)
    entries = [json.loads((out / "manifest.json").read_text())["variance"] for out in (both, one)]
    assert [entry["processes"] for entry in entries] == [2, 1]
    assert entries[0]["specification"] == entries[1]["specification"]
    again = cli(*command, "--out", both, "--resume")
    assert again.code == 0 and "is measured already" in again.err, "the number of processes changes no number"


DYING = """
import os
import signal
from pathlib import Path

import torch

from mfdiag.gradients import pass_checkpoint
from mfdiag.models.networks.mlp import MLP

HERE = Path(__file__).parent
pass_checkpoint._SECONDS_BETWEEN_SAVES = 0  # a state after each stretch

class Dying(MLP):
    def forward(self, x, r, t, y=None):
        if os.environ.get("RANK") == "1" and len(list((HERE / "out" / ".partial").glob("*.pt"))) > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x, r, t, y)

class Spoiled(MLP):
    def forward(self, x, r, t, y=None):
        factor = torch.where(t > float((HERE / "time").read_text()), torch.nan, 1.0)
        return super().forward(x, r, t, y) * factor[:, None]

def dying():
    return Dying(2, hidden=8, depth=1)

def spoiled():
    return Spoiled(2, hidden=8, depth=1)
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "code.py").write_text(DYING)
    return tmp_path / "code.py"


def test_a_process_that_dies_ends_the_others_and_one_process_resumes(
    cli: Run, checkpoint: Path, code: Path, tmp_path: Path
) -> None:
    command = ("sweep", checkpoint, "--samples", 300, "--dtype", "float64", "--chunk", 10, "--model", f"{code}:dying")
    out, whole = tmp_path / "out", tmp_path / "whole"
    ended = torchrun(*command, "--out", out)
    assert ended.returncode != 0 and ended.stdout == ""
    assert own_lines(ended.stderr) == [
        f"mfdiag: interrupted; 0 of 1 checkpoints and part of the next one are measured and saved in {out}; resume "
        "with --resume."
    ]
    assert "/mfdiag/" not in ended.stderr.replace(str(tmp_path), ""), "a traceback of mfdiag"
    assert len(list((out / ".partial").iterdir())) == 1
    resumed = cli(*command, "--out", out, "--resume")
    assert resumed.code == 0 and not (out / ".partial").exists()
    assert cli(*command, "--out", whole).code == 0
    assert_same_table("sweep", out, whole)


def test_the_error_of_one_process_is_one_sentence(checkpoint: Path, code: Path, tmp_path: Path) -> None:
    """NaN in a sample that the second process measures."""
    from mfdiag.flow.times import parse_times
    from mfdiag.measures.run.subject import SubjectOptions, load_subject

    draws = load_subject(checkpoint, SubjectOptions(), say=lambda note: None).draws(0)
    assert draws.times.name == parse_times("uniform").name
    t = draws.times_of(np.arange(64))[1]
    last = 8 + int(t[8:].argmax())
    (tmp_path / "time").write_text(str(float(np.sort(t)[-2]) if t.argmax() == last else 2.0))
    command = ("sweep", checkpoint, "--samples", 64, "--model", f"{code}:spoiled", "--out", tmp_path / "out")
    ended = torchrun(*command)
    assert ended.returncode != 0 and ended.stdout == "" and "/mfdiag/" not in ended.stderr.replace(str(tmp_path), "")
    (line,) = own_lines(ended.stderr)
    assert f"first at sample {last} " in line


@pytest.mark.parametrize("command", ["train", "identify", "report", "list"])
def test_commands_that_share_nothing_refuse_several_processes(
    command: str, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    arguments = {"train": ["spec.yaml"], "report": ["results"], "list": ["estimators"]}.get(command, [])
    result = cli(command, *arguments)
    assert result.code == 2 and f"`mfdiag {command}` runs in one process" in result.err
    monkeypatch.setenv("RANK", "1")
    assert cli(command, *arguments) == (2, "", "")


@pytest.mark.parametrize("value", ["two", "0", "-1"])
def test_a_wrong_number_of_processes_is_refused(value: str, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    result = cli("sweep")
    assert result.code == 2 and f"WORLD_SIZE should be a number of processes, but is {value!r}" in result.err


def test_processes_that_cannot_connect_are_told_how_to_start(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    result = cli("sweep")
    assert result.code == 2 and "Start them with torchrun, or unset WORLD_SIZE" in result.err
