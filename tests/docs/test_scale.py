"""The scripts of docs/scale.md: shells, launchers and mfdiag itself parse them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import typer
from torch.distributed.run import get_args_parser

from mfdiag.cli.app import _SHARED, app

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def lines() -> list[list[str]]:
    """The words of every command."""
    joined = "\n".join(blocks("sh")).replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def require_options(words: list[str]) -> None:
    """mfdiag has this command, with these options."""
    command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known, words


@pytest.mark.parametrize("script", blocks("sh"))
def test_shells_parse_the_scripts(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_torchrun_takes_its_options_and_mfdiag_its_own() -> None:
    commands = [words[words.index("torchrun") + 1 :] for words in lines() if "torchrun" in words]
    commands += [shlex.split(text)[1:] for text in re.findall(r'"(torchrun [^"]*)"', "\n".join(blocks("python")))]
    assert len(commands) == 4
    for words in commands:
        numbers = [word.replace("$SLURM_NNODES", "2") for word in words]
        parsed = get_args_parser().parse_args(numbers)
        assert parsed.module and parsed.training_script == "mfdiag"
        assert parsed.training_script_args[0] in _SHARED
        require_options(parsed.training_script_args)


def test_accelerate_takes_its_options() -> None:
    launch = pytest.importorskip("accelerate.commands.launch")
    (words,) = [words for words in lines() if words[0] == "accelerate"]
    parsed = launch.launch_command_parser().parse_args(words[2:])
    assert parsed.module and parsed.training_script == "mfdiag" and parsed.num_processes == 8
    require_options(parsed.training_script_args)


def test_ray_takes_its_options() -> None:
    scripts = pytest.importorskip("ray.scripts.scripts")
    starts = [words[2:] for words in lines() if words[:2] == ["ray", "start"]]
    assert len(starts) == 2
    for words in starts:
        scripts.start.make_context("start", list(words))
    commands = [words[1:] for words in lines() if words[0] == "mfdiag"]
    assert len(commands) == 3
    for words in commands:
        require_options(words)


def test_slurm_gets_options_that_it_knows() -> None:
    (script,) = [script for script in blocks("sh") if "#SBATCH" in script]
    options = re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", script, re.MULTILINE)
    assert {name for name, _ in options} == {
        "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal"
    }  # fmt: skip
    assert script.startswith("#!/bin/bash\n#SBATCH"), "sbatch reads options before the first command alone"


def test_the_script_for_submitit_submits_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = MagicMock()
    monkeypatch.setitem(sys.modules, "submitit", submitit)
    (script,) = blocks("python")
    exec(compile(script, "scale.md", "exec"), {})
    (command,), _ = submitit.helpers.CommandFunction.call_args
    assert command[0] == "torchrun" and submitit.AutoExecutor().submit.called
