"""The runner: one process per folder and command, nothing left behind, nothing measured twice."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock
from helpers import rows

from mfdiag.errors import InputError
from mfdiag.gradients.pass_checkpoint import PassCheckpoint
from mfdiag.measures.run.job import Job
from mfdiag.measures.run.result_folder import Mode
from mfdiag.measures.run.runner import run
from mfdiag.storage import temporary_path
from mfdiag.tables import read_table
from mfdiag.tables.check import conform
from mfdiag.tables.provenance import read_manifest, write_manifest


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


def held(names: Sequence[str], out: Path, mode: Mode = "new") -> tuple[threading.Thread, threading.Event]:
    """A run that has started to measure and ends once the event is set."""
    started, release = threading.Event(), threading.Event()

    def hold(name: str) -> None:
        started.set()
        assert release.wait(60)

    thread = threading.Thread(target=run, args=(Lengths(names, hold), out, mode), kwargs={"say": mute})
    thread.start()
    assert started.wait(60)
    return thread, release


@pytest.mark.parametrize(
    ("first", "second", "earlier"),
    [
        ("new", "new", []),
        ("new", "overwrite", []),
        ("resume", "resume", ["earlier"]),
        ("resume", "overwrite", ["earlier"]),  # a part of what the first run resumes
        ("overwrite", "resume", []),
        ("overwrite", "overwrite", []),
    ],
)
def test_a_second_process_waits_and_adds_its_rows(
    first: Mode, second: Mode, earlier: list[str], tmp_path: Path
) -> None:
    if first != "new":
        run(Lengths(["earlier"]), tmp_path, "new", say=mute)
        time.sleep(0.02)  # the clock of the file system is coarse
    thread, release = held(["a", "bb"], tmp_path, first)
    notes: list[str] = []

    def say(note: str) -> None:
        notes.append(note)
        release.set()

    outcome = run(Lengths(["bb", "ccc"]), tmp_path, second, say=say)
    thread.join()
    assert "another process is running `mfdiag lengths`" in notes[0] and "bb is measured already." in notes
    assert list(outcome.frames["training"]["checkpoint"]) == [*earlier, "a", "bb", "ccc"]
    assert {path.name for path in tmp_path.iterdir()} == {"training.parquet", "manifest.json"}


def test_what_waited_for_a_run_with_other_options_is_refused(tmp_path: Path) -> None:
    thread, release = held(["a"], tmp_path)
    with pytest.raises(InputError, match=r"other options \(scale\)"):
        run(Lengths(["b"], scale=2), tmp_path, "new", say=lambda note: release.set())
    thread.join()
    assert list(read_table("training", tmp_path)["checkpoint"]) == ["a"]


def test_many_runs_at_once_lose_nothing(tmp_path: Path) -> None:
    names = [str(k) for k in range(8)]
    threads = [threading.Thread(target=run, args=(Lengths([n]), tmp_path, "new"), kwargs={"say": mute}) for n in names]
    holder = FileLock(tmp_path / ".lengths.lock")
    with holder:
        for thread in threads:
            thread.start()
        time.sleep(0.2)  # all of them have started before the first one writes
    for thread in threads:
        thread.join()
    assert sorted(read_table("training", tmp_path)["checkpoint"]) == names
    assert {path.name for path in tmp_path.iterdir()} == {"training.parquet", "manifest.json"}


def test_commands_at_once_keep_all_their_entries(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=write_manifest, args=(tmp_path, str(k), {"specification": {}})) for k in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_manifest(tmp_path).keys() == {str(k) for k in range(16)}


class Killed(BaseException):
    """What a killed process does not survive, to the end of the test."""


@pytest.mark.parametrize("mode", ["new", "overwrite"])
def test_a_run_killed_at_any_rename_resumes(mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a run that replaces one of other options: never are rows of both in one table."""
    whole = run(Lengths(["a", "bb"]), tmp_path / "whole", "new", say=mute).frames["training"]
    replace, points = Path.replace, 0
    for k in itertools.count():
        out, calls = tmp_path / str(k), itertools.count()
        if mode == "overwrite":
            run(Lengths(["a", "bb"], scale=2), out, "new", say=mute)

        def killed(path: Path, target: Path, calls: itertools.count[int] = calls, k: int = k) -> Path:
            number = next(calls)  # even: before a rename, odd: after it
            if number == k // 2 and not k % 2:
                raise Killed
            result = replace(path, target)
            if number == k // 2:
                raise Killed
            return result

        monkeypatch.setattr(Path, "replace", killed)
        try:
            run(Lengths(["a", "bb"]), out, mode, say=mute)
        except Killed:
            points += 1
        else:
            break
        finally:
            monkeypatch.setattr(Path, "replace", replace)
        resumed = run(Lengths(["a", "bb"]), out, "resume", say=mute).frames["training"]
        pd.testing.assert_frame_equal(resumed, whole)
    assert points == 10, "two tables, three manifests, before and after each rename"


def test_temporary_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = temporary_path(tmp_path / "training.parquet").name
    orphan = mine.replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    living = mine.replace(f"-{os.getpid()}-", f"-{os.getppid()}-")
    for name in (orphan, living, ".note.tmp"):
        (tmp_path / name).touch()
    run(Lengths(["a"]), tmp_path, "new", say=mute)
    assert {path.name for path in tmp_path.iterdir()} == {"training.parquet", "manifest.json", living, ".note.tmp"}


def test_a_measurement_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    def fail(name: str) -> None:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        run(Lengths(["a"], fail), tmp_path / "new" / "folder", "new", say=mute)
    assert list(tmp_path.iterdir()) == []
