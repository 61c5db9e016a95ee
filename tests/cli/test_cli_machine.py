"""A full disk, no memory, no open files, folders that cannot be written: one sentence and exit code 2, and no loss."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import Result, Run

from mfdiag.gradients import sample_pass
from mfdiag.tables import read_table

QUICK = ("--samples", "64", "--bins", "none", "--quiet")
SPEC = """\
data: gaussian:2,0,1
model: {name: mlp, arguments: {dim: 2, hidden: 8, depth: 1}}
times: uniform
batch_size: 8
steps: 4
"""
LAST = ("--samples", "64", "--out", "out")
COMMANDS = {
    "sweep": ("sweep", "CHECKPOINT", *QUICK, "--beta", "0,1", "--out", "out"),
    "variance": ("variance", "CHECKPOINT", *QUICK, "--out", "out"),
    "compare": ("compare", "CHECKPOINT", *QUICK, "--estimator", "meanflow", "--out", "out"),
    "coefficient": ("coefficient", "CHECKPOINT", *QUICK, "--out", "out"),
    "times": ("times", "CHECKPOINT", "--quiet", "--samples", "256", "--bins", "2,2", "--out", "out"),
    "quality": ("quality", "CHECKPOINT", "--quiet", "--nfe", "1", "--metric", "coverage", "--subsample", "8", *LAST),
    "train": ("train", "spec.yaml", "--quiet", "--compile", "off", "--out", "out"),
    "report": ("report", "out"),
}


@pytest.fixture
def arguments(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[[str], tuple[str, ...]]:
    """The arguments of a command by name, in a folder that holds what it reads."""
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(SPEC)
    if "report" not in request.node.name:
        monkeypatch.setattr("mfdiag.figures.save_figures", lambda tables, out: [])
    return lambda command: tuple(str(checkpoint) if a == "CHECKPOINT" else a for a in COMMANDS[command])


@contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    """A limit of this process."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def clear(result: Result, *words: str) -> None:
    """One sentence, and exit code 2."""
    assert result.code == 2, result
    assert result.err.startswith("mfdiag: ") and result.err.count("\n") == 1 and "Unexpected" not in result.err
    assert all(word in result.err for word in words), result.err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_cannot_grow(command: str, cli: Run, arguments: Callable[[str], tuple[str, ...]]) -> None:
    """As on a full disk, for whatever writes: Python, torch, Arrow, safetensors, matplotlib."""
    if command == "report":
        assert cli(*arguments("sweep")).code == 0
        shutil.rmtree("out/figures", ignore_errors=True)
    limits = (0, 900, 4000) if command in ("train", "report") else (0, 3000)
    for limit in limits:
        with limited(resource.RLIMIT_FSIZE, limit):
            clear(cli(*arguments(command)), "Cannot write", "File too large", "Free disk space")
        assert not list(Path().rglob("*.tmp"))
        if command != "report" and (Path("out") / f"{command}.parquet").exists():
            shutil.rmtree("out")
    assert cli(*arguments(command)).code == 0


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_disk_that_is_full_at_the_nth_write_loses_nothing(
    function: str, cli: Run, arguments: Callable[[str], tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*arguments("variance")[:-1], "whole").code == 0
    owner: Any = os if function == "fsync" else Path
    original = getattr(owner, function)
    for point in range(20):
        shutil.rmtree("out", ignore_errors=True)
        calls: list[None] = []

        def full(*values: Any, calls: list[None] = calls, point: int = point) -> Any:
            calls.append(None)
            if len(calls) == point + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*values)

        monkeypatch.setattr(owner, function, full)
        result = cli(*arguments("variance"))
        monkeypatch.setattr(owner, function, original)
        if len(calls) <= point:
            break
        if result.code:  # syncing a folder is a courtesy
            clear(result, "Cannot write", "No space left on device). Free disk space")
        assert cli(*arguments("variance"), "--resume").code == 0
        for name in ("variance", "samples"):
            pd.testing.assert_frame_equal(read_table(name, "out"), read_table(name, "whole"))
    assert point >= 4


@pytest.mark.parametrize("command", COMMANDS)
def test_no_open_files(command: str, cli: Run, arguments: Callable[[str], tuple[str, ...]]) -> None:
    if command == "report":
        assert cli(*arguments("sweep")).code == 0
    with limited(resource.RLIMIT_NOFILE, 3):
        result = cli(*arguments(command))
    clear(result)


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"report"}))
@pytest.mark.parametrize("out", ["/proc/none", "/dev/null/x", "spec.yaml/x", "x" * 300])
def test_folders_that_nothing_can_be_written_to(
    command: str, out: str, cli: Run, arguments: Callable[[str], tuple[str, ...]]
) -> None:
    clear(cli(*arguments(command)[:-1], out))


def test_a_folder_that_vanishes(
    cli: Run, arguments: Callable[[str], tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def vanishing(path: Path, target: Path) -> Path:
        shutil.rmtree("out")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", vanishing)
    clear(cli(*arguments("sweep")), "Cannot write", "Check that the folder still exists")


def exhausted(above: int, monkeypatch: pytest.MonkeyPatch, words: str) -> list[int]:
    """Makes the evaluation of more samples than `above` fail for lack of memory; returns the sizes that are tried."""
    evaluate, sizes = sample_pass.evaluate_batch, []

    def evaluated(builder: Any, engine: Any, derivative: Any, batch: Any) -> Any:
        sizes.append(len(batch.index))
        if len(batch.index) > above:
            raise RuntimeError(words)
        return evaluate(builder, engine, derivative, batch)

    monkeypatch.setattr(sample_pass, "evaluate_batch", evaluated)
    return sizes


OF_THIS_TORCH = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
OF_OTHERS = "DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"


@pytest.mark.parametrize("words", [OF_THIS_TORCH, OF_OTHERS, "std::bad_alloc", "CUDA out of memory. Tried"])
def test_chunks_become_smaller_until_they_fit(
    words: str, cli: Run, arguments: Callable[[str], tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*arguments("sweep")[:-1], "whole", "--chunk", "32").code == 0
    sizes = exhausted(5, monkeypatch, words)
    run = [argument for argument in arguments("sweep") if argument != "--quiet"]
    result = cli(*run, "--chunk", "32")
    assert result.code == 0, result.err
    assert "not enough memory for 32 samples at once: the pass starts again with 16" in result.err
    assert [size for size in sizes if size > 5] == [32, 16, 8] and max(sizes[-16:]) == 4
    one, other = (read_table("sweep", out) for out in ("out", "whole"))
    np.testing.assert_allclose(one["value"], other["value"], rtol=1e-5)
    assert list(one["status"]) == list(other["status"])


def test_memory_that_is_never_enough(
    cli: Run, arguments: Callable[[str], tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = exhausted(0, monkeypatch, OF_THIS_TORCH)
    clear(cli(*arguments("sweep"), "--chunk", "4"), "Not enough memory: lower --chunk, --samples or --bins.")
    assert sizes == [4, 2, 1]


def test_chunks_of_quality_become_smaller(
    cli: Run, arguments: Callable[[str], tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mfdiag.models.networks.mlp import MLP

    assert cli(*arguments("quality")[:-1], "whole").code == 0
    forward = MLP.forward

    def small(self: MLP, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(x) > 1 and len(x) != 2:  # two are compared before
            raise RuntimeError(OF_THIS_TORCH)
        return forward(self, x, *rest)

    monkeypatch.setattr(MLP, "forward", small)
    assert cli(*arguments("quality")).code == 0
    np.testing.assert_allclose(read_table("quality", "out")["value"], read_table("quality", "whole")["value"], 1e-4)
    monkeypatch.setattr(MLP, "forward", lambda self, x, *rest: small(self, torch.zeros(9, 2)))
    clear(cli(*arguments("quality"), "--overwrite"), "Not enough memory: lower --chunk, --samples or --subsample.")


def test_a_full_disk_behind_the_output() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "mfdiag", "list", "estimators"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "No space left" in result.stderr


EXITS = """
import sys
from mfdiag.models.networks.mlp import MLP
if {at_import}: sys.exit(0)

class Net(MLP):
    def forward(self, x, r, t, y=None):
        sys.exit("no")

def build():
    if {in_factory}: sys.exit(0)
    return Net(2, hidden=8, depth=1)

class Data:
    def __len__(self): return 4
    def __getitem__(self, k): sys.exit(0)

def data(): return Data()
"""


@pytest.mark.parametrize("where", ["at_import", "in_factory", "in the network", "in the data"])
@pytest.mark.parametrize("command", ["sweep", "quality"])
def test_code_that_exits_is_reported(
    command: str, where: str, cli: Run, arguments: Callable[[str], tuple[str, ...]]
) -> None:
    flags = {name: name == where for name in ("at_import", "in_factory")}
    Path("exits.py").write_text(EXITS.format(**flags))
    option = ("--data", "exits.py:data") if where == "in the data" else ("--model", "exits.py:build")
    more = () if where == "in the data" else ("--data", "gaussian:2,0,1")
    result = cli(*arguments(command), *option, *more)
    clear(result)
    assert "exit" in result.err.lower()
