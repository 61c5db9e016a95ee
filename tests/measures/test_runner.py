"""The runner: one process per folder and command, nothing left behind, nothing measured twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock
from helpers import rows

from mfdiag.errors import InputError
from mfdiag.gradients.pass_checkpoint import PassCheckpoint
from mfdiag.measures.run.job import Job
from mfdiag.measures.run.runner import run
from mfdiag.tables import read_table
from mfdiag.tables.check import conform


class Lengths(Job[str]):
    """Writes table `training` with the length of each name."""

    command = "lengths"
    tables = ("training",)
    identity_columns = ("checkpoint", "checkpoint_sha256")
    seeds = (0,)
    device = "cpu"

    def __init__(self, names: Sequence[str], before: Callable[[str], None] = lambda name: None, scale: int = 1) -> None:
        self.names, self.before = names, before
        self.specification = {"scale": scale}
        self.measured: list[str] = []

    def subjects(self) -> Sequence[str]:
        return self.names

    def identity(self, subject: str) -> tuple[str, ...]:
        return subject, "0"

    def label(self, subject: str) -> str:
        return subject

    def measure(self, subject: str, checkpoint: PassCheckpoint) -> Mapping[str, pd.DataFrame]:
        self.before(subject)
        self.measured.append(subject)
        row = {
            **dict.fromkeys(("run", "dataset", "times", "cell"), "x"),
            **dict.fromkeys(("estimator", "proxy", "weighting", "std_error", "ci_low", "ci_high")),
            **dict.fromkeys(("beta", "gamma", "anchor"), 0.0),
            **{"checkpoint": subject, "checkpoint_sha256": "0", "step": 1, "seed": 0, "n_samples": 1},
            **{"quantity": "loss", "value": float(len(subject)), "status": "ok"},
        }
        return {"training": conform("training", pd.DataFrame([row]))}


def mute(note: str) -> None:
    """Drops a note."""


def test_what_is_measured_is_written_at_once_and_never_again(tmp_path: Path) -> None:
    def interrupt(name: str) -> None:
        if name == "ccc":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="2 of 3 checkpoints are measured"):
        run(Lengths(["a", "bb", "ccc"], interrupt), tmp_path, "new", say=mute)
    assert list(read_table("training", tmp_path)["checkpoint"]) == ["a", "bb"]
    again = Lengths(["a", "bb", "ccc"])
    notes: list[str] = []
    outcome = run(again, tmp_path, "resume", say=notes.append)
    assert again.measured == ["ccc"] and notes == ["a is measured already.", "bb is measured already."]
    assert list(outcome.frames["training"]["value"]) == [1, 2, 3]
    assert rows(outcome.frames["training"], checkpoint="bb")["value"].item() == 2
    with pytest.raises(InputError, match=r"other options \(scale\)"):
        run(Lengths(["d"], scale=2), tmp_path, "resume", say=mute)


def test_a_second_process_waits_or_goes_elsewhere(tmp_path: Path) -> None:
    holder = FileLock(tmp_path / ".lengths.lock")
    with holder, pytest.raises(InputError, match="Another process is running `mfdiag lengths`"):
        run(Lengths(["a"]), tmp_path, "new", say=mute)
    assert run(Lengths(["a"]), tmp_path, "new", say=mute).frames["training"]["value"].item() == 1
    assert {path.name for path in tmp_path.iterdir()} == {"training.parquet", "manifest.json"}


def test_one_of_two_at_once_is_refused(tmp_path: Path) -> None:
    started, release = threading.Event(), threading.Event()

    def hold(name: str) -> None:
        started.set()
        assert release.wait(60)

    first = threading.Thread(target=run, args=(Lengths(["a"], hold), tmp_path, "new"), kwargs={"say": mute})
    first.start()
    assert started.wait(60)
    with pytest.raises(InputError, match="wait until it ends, or pass another --out"):
        run(Lengths(["b"]), tmp_path, "overwrite", say=mute)
    release.set()
    first.join()
    assert list(read_table("training", tmp_path)["checkpoint"]) == ["a"]


def test_a_measurement_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    def fail(name: str) -> None:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        run(Lengths(["a"], fail), tmp_path / "new" / "folder", "new", say=mute)
    assert list(tmp_path.iterdir()) == []
