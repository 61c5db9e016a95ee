"""Help and its generated page; what starts fast; streams as other programs see them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from mfdiag import __version__
from mfdiag.cli.app import app
from mfdiag.cli.docs import PAGE, markdown

Run = Callable[..., Any]
ROOT = Path(__file__).parents[2]
GROUP: Any = typer.main.get_command(app)
COMMANDS = list(GROUP.commands)


def options() -> Iterator[tuple[str, str]]:
    for name, command in GROUP.commands.items():
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("-"):
                    yield name, option


def test_commands_are_the_contract() -> None:
    assert COMMANDS == (
        [
            "sweep",
            "variance",
            "coefficient",
            "compare",
            "times",
            "quality",
            "identify",
            "doctor",
            "train",
            "report",
            "inspect",
            "list",
        ]
    )


def test_the_committed_page_is_the_generated_one() -> None:
    assert (ROOT / PAGE).read_text(encoding="utf-8") == markdown(), "run `python -m mfdiag.cli.docs`"


@pytest.mark.parametrize("name", COMMANDS)
def test_options_stand_in_groups_where_there_are_groups(name: str) -> None:
    parameters = [p for p in GROUP.commands[name].params if p.param_type_name == "option"]
    groups = {p.name: getattr(p, "rich_help_panel", None) for p in parameters}
    assert not any(groups.values()) or all(groups.values()), groups


def test_every_command_and_option_is_on_the_page_and_has_help() -> None:
    page = markdown()
    shared = page.partition("## Shared options")[2].partition("\n## ")[0]
    for name, option in options():
        section = page.partition(f"## mfdiag {name}\n")[2].partition("\n## ")[0]
        assert re.search(rf"`[^`]*{option}\b", section if "shared options" not in section else section + shared), name
    for command in GROUP.commands.values():
        for parameter in command.params:
            assert getattr(parameter, "help", None) or parameter.name == "help", (command.name, parameter.name)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_of_its_own(name: str, cli: Run) -> None:
    result = cli(name, "--help")
    assert result.code == 0 and f"Example: mfdiag {name} " in result.out and result.err == ""
    assert cli(name, "-h").out == result.out


def test_version_and_bare_command(cli: Run) -> None:
    assert cli("--version") == (0, f"mfdiag {__version__}\n", "")
    bare = cli()
    assert all(name in bare.out + bare.err for name in COMMANDS)


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("estimators", "meanflow"),
        ("datasets", "eight_gaussians"),
        ("models", "mlp"),
        ("times", "logit_normal"),
        ("metrics", "sliced_wasserstein"),
    ],
)
def test_list(kind: str, known: str, cli: Run) -> None:
    result = cli("list", kind)
    assert result.code == 0 and result.err == ""
    names = [line.split()[0] for line in result.out.splitlines()]
    assert known in names and len(set(names)) == len(names)


QUICK_STARTS = (["--help"], ["--version"], ["sweep", "--help"], ["list", "estimators"], ["list", "metrics"])


def test_what_answers_without_torch() -> None:
    """One process that runs them all, each of which would import torch for good."""
    code = f"""
import sys
from mfdiag.cli import main
for arguments in {QUICK_STARTS!r}:
    sys.argv = ["mfdiag", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code
    assert "torch" not in sys.modules, arguments
    assert "matplotlib" not in sys.modules, arguments
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def mfdiag(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mfdiag", *map(str, arguments)]
    return subprocess.run(command, text=True, capture_output=True, timeout=300, check=False, **options)


def test_as_a_program(checkpoint: Path, tmp_path: Path) -> None:
    done = mfdiag("sweep", checkpoint, "--samples", 64, "--format", "json", cwd=tmp_path)
    assert done.returncode == 0 and len(json.loads(done.stdout)) > 100
    note, *places = done.stderr.splitlines()
    assert note.startswith("note: 64 samples cannot tell whether ")  # the network is untrained
    assert places == ["tables: mfdiag-results/sweep.parquet", "figures: mfdiag-results/figures"]
    failed = mfdiag("inspect", tmp_path / "mfdiag-results")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.count("\n") == 1 and failed.stderr.startswith("mfdiag: Expected a checkpoint file")


@pytest.mark.parametrize("command", ["list metrics", "inspect"])  # the second is printed by rich
def test_a_reader_that_stops(command: str, checkpoint: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [*command.split(), *([checkpoint] if command == "inspect" else [])]
    program = [sys.executable, "-m", "mfdiag", *map(str, arguments)]
    done = subprocess.run(program, text=True, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_without_unicode() -> None:
    plain = mfdiag("list", "metrics", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert plain.returncode == 0 and plain.stderr == ""
