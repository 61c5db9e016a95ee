"""What fits a terminal, and what long work says on a pipe."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from figure_tables import compare_table
from rich.console import Console

from mfdiag.cli.printing import print_outcome
from mfdiag.cli.progress import progress_on

Run = Callable[..., Any]


@pytest.fixture
def compared(cli: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Any]:
    """compared(columns): `mfdiag compare` on a terminal of this width."""

    def run(columns: int) -> Any:
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("COLUMNS", str(columns))
        return cli("compare", checkpoint, "--samples", 96, "--out", tmp_path / "out", "--overwrite")

    return run


def _widths(text: str) -> list[int]:
    return [len(re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip()) for line in text.splitlines()]


def test_compare_fits_a_hundred_and_ten_columns(compared: Callable[[int], Any]) -> None:
    shown = compared(110)
    assert shown.code == 0 and max(_widths(shown.out)[1:]) <= 110  # below the title, which has a path
    for heading in ("cost", "variance ratio", "conditional", "bias2", "cosine", "MSE ratio", "n=1,048,576"):
        assert heading in shown.out
    assert "left out: the terminal" not in shown.err


def test_a_narrow_terminal_leaves_columns_out_and_says_so(compared: Callable[[int], Any]) -> None:
    shown = compared(80)
    assert shown.code == 0
    table = shown.out.partition("best mixture")[0]
    assert max(_widths(table)[1:]) <= 80 and "variance ratio" in table and "MSE ratio" in table
    (note,) = [line for line in shown.err.splitlines() if "left out: the terminal has 80 columns" in line]
    left_out = note.partition("note: ")[2].partition(" left out")[0].split(", ")
    assert left_out and not any(re.search(rf"\b{name}\b(?! ratio)", table.splitlines()[1]) for name in left_out)


def test_a_pipe_gets_every_column_if_it_is_wide(
    cli: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = cli("compare", checkpoint, "--samples", 96, "--out", tmp_path / "out")
    assert all(heading in shown.out for heading in ("cost", "conditional", "bias2", "cosine"))


@pytest.mark.parametrize("table", ["sweep", "variance", "coefficient", "compare", "times", "quality"])
def test_a_run_ends_with_25_lines_of_80_columns(table: str, cli: Run, save: Run, tmp_path: Path) -> None:
    few = {"quality": ["--subsample", "16"], "times": ["--bins", "1,2"]}.get(table, [])
    shown = cli(table, save(), "--samples", 640, *few, "--out", tmp_path / "out")
    printed = [*shown.out.splitlines()[1:], *(line for line in shown.err.splitlines() if "everything" in line)]
    assert shown.code == 0 and len(printed) + 1 + 2 <= 25 and max(map(len, shown.out.splitlines()[1:])) <= 80
    assert len(printed) > 4 and re.search(r"^[A-Z].*", printed[0]), "a sentence before the table"


def test_twenty_checkpoints_are_one_table(cli: Run, save: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    paths = [save(f"step_{k}", step=1000 * k) for k in range(1, 21)]
    shown = cli("variance", *paths, "--samples", 64, "--bins", "none", "--by", "none", "--out", tmp_path / "out")
    title, head, *rows = shown.out.splitlines()
    assert title == "variance of 20 models and settings" and "step" in head and "gradient variance" in head
    assert [row.split()[0] for row in rows[:20]] == [f"step_{k}" for k in range(1, 21)]
    assert len(rows) <= 21 and max(map(len, (head, *rows))) <= 80


def test_an_interval_that_says_nothing_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    frame = compare_table().assign(step=1)
    frame.loc[frame["quantity"] == "variance_ratio", "quantity"] = "mixture_gain"
    frame.loc[frame["quantity"] == "mixture_gain", ["ci_low", "ci_high"]] = [0.16, float("inf")]
    print_outcome("compare", {"compare": frame}, None, "table", lambda note: None)
    rows = [line for line in capsys.readouterr().out.splitlines() if "mixture_gain" in line]
    assert rows and all(line.rstrip().endswith("not measurable") for line in rows)


def test_long_work_on_a_pipe_writes_a_line_every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 10.0, 31.0, 40.0, 62.0, 4000.0])
    monkeypatch.setattr("mfdiag.cli.progress.time.monotonic", lambda: next(clock))
    console = Console(file=StringIO(), width=200)
    with progress_on(console) as progress:
        for done in (0, 10, 30, 40, 60, 99):
            progress("sweep of a", done, 1000)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == [
        "sweep of a: 30 of 1,000 after 0:30, about 16:10 left",
        "sweep of a: 60 of 1,000 after 1:01, about 15:56 left",
        "sweep of a: 99 of 1,000 after 1:06:39, about 10:06:35 left",
    ]


def test_quiet_work_writes_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfdiag.cli.progress._SECONDS", -1.0)
    console = Console(file=StringIO(), quiet=True)
    with progress_on(console) as progress:
        progress("sweep", 1, 2)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_help_lists_options_in_titled_groups_the_commands_own_first(cli: Run) -> None:
    shown = cli("sweep", "--help").out
    titles = re.findall(r"^(\w[\w ]*):$", shown, re.MULTILINE)
    assert titles == [
        "Arguments",
        "This command",
        "Model",
        "Data and objective",
        "Measurement",
        "Cluster",
        "Output",
        "Options",
    ]
    own = shown.partition("This command:")[2].partition("Model:")[0]
    assert re.findall(r"--[\w-]+", own) == ["--beta", "--gamma", "--batch-size"]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_follows_the_width_of_the_terminal(columns: int) -> None:
    environment = {"COLUMNS": str(columns), "PATH": ""}
    command = [sys.executable, "-m", "mfdiag", "variance", "--help"]
    shown = subprocess.run(command, text=True, capture_output=True, check=True, env=environment).stdout
    widest = max(len(line) for line in shown.splitlines() if not re.search(r"--\w+ \S{30,}", line))
    assert columns - 20 <= widest <= columns


def test_completion_is_printed_for_a_shell() -> None:
    command = [sys.executable, "-m", "mfdiag", "--show-completion"]
    environment = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "PATH": ""}
    shown = subprocess.run([*command, "bash"], text=True, capture_output=True, check=True, env=environment).stdout
    assert "_MFDIAG_COMPLETE" in shown


@pytest.mark.parametrize("betas", ["0", "0,1", "0,0.5,1"])
def test_few_rows_are_all_printed_and_no_note_counts_less_than_none(
    cli: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, betas: str
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    done = cli("sweep", checkpoint, "--samples", 64, "--beta", betas, "--out", tmp_path / "out")
    assert "more row" not in done.err
