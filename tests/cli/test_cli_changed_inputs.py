"""What a run reads is hashed: it resumes under the same files alone, and data that change meanwhile give no rows."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mfdiag.tables import read_table

QUICK = ("--samples", "80", "--bins", "none", "--times", "uniform", "--out", "out")

CODE = """
from beside import WIDTH
from mfdiag.models.networks.mlp import MLP
from mfdiag.estimators import Estimator

def build():
    return MLP(2, hidden=WIDTH, depth=1)

def features():
    return lambda x: x

ESTIMATOR = Estimator("own", "own", "none", "u - v_c", residual=lambda fields: fields.u - fields.v_c)
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> Iterator[Path]:
    """Data in several layouts, code with a module beside it, a card, a teacher, a folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "beside", raising=False)  # of another test's folder
    monkeypatch.setattr("mfdiag.figures.save_figures", lambda tables, out: [])
    monkeypatch.syspath_prepend(str(tmp_path))
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    np.save("x.npy", x)
    np.save("moments.npy", np.concatenate([x, x], axis=1))
    np.savez("pairs.npz", x0=x, x1=x[::-1])
    Path("scale.json").write_text('{"mean": [0, 0], "std": [1, 1]}')
    for k in range(3):
        Path("shards").mkdir(exist_ok=True)
        np.save(f"shards/{k}.npy", x[k::3])
    Path("code.py").write_text(CODE)
    Path("beside.py").write_text("WIDTH = 8\n")
    Path("teacher.safetensors").write_bytes(checkpoint.read_bytes())
    Path("card.yaml").write_text("extends: ours.yaml\n")
    Path("ours.yaml").write_text(CARD)
    yield tmp_path
    sys.modules.pop("beside", None)  # it is of this folder alone


CARD = """
network: {factory: "code.py:build"}
call: {arguments: [x, r, t]}
"""


def rewritten(name: str) -> None:
    path = Path(name)
    if path.suffix == ".npy":
        np.save(path, np.load(path)[::-1] * 1.01)
    elif path.suffix == ".npz":
        np.savez(path, x0=np.load(path)["x1"], x1=np.load(path)["x0"])
    elif path.suffix == ".json":
        path.write_text('{"mean": [0, 0], "std": [2, 2]}')
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        save_file({key: value + 0.1 for key, value in load_file(path).items()}, path, metadata)
    else:
        path.write_text(path.read_text() + "# changed\n")


CASES = [
    ("sweep", "--data x.npy", "x.npy", "data x.npy"),
    ("sweep", "--data x.npy:labels=none,statistics=scale.json", "scale.json", "data scale.json"),
    ("variance", "--data shards:files=shards", "shards/1.npy", "data shards, 3 files from 0.npy"),
    ("sweep", "--data x.npy --coupling pairs:pairs.npz", "pairs.npz", "data pairs.npz"),
    ("times", "--samples 2048 --data moments.npy:moments=std", "moments.npy", "data moments.npy"),
    ("sweep", "--model code.py:build", "code.py", "code code.py"),
    ("sweep", "--model code.py:build", "beside.py", "beside.py"),
    ("variance", "--estimator code.py:ESTIMATOR", "code.py", "code code.py"),
    ("coefficient", "--proxy teacher=teacher.safetensors", "teacher.safetensors", "teacher teacher.safetensors"),
    (
        "quality",
        "--features code.py:features --nfe 1 --subsample 8 --samples 64 --metric coverage",
        "code.py",
        "code code.py",
    ),
    (
        "quality",
        "--data shards:files=shards --held-out x.npy --nfe 1 --subsample 8 --samples 64 --metric memorization",
        "x.npy",
        "data x.npy",
    ),
]


@pytest.mark.parametrize(("command", "options", "changed", "named"), CASES)
def test_resuming_under_another_file_is_refused_by_its_name(
    command: str, options: str, changed: str, named: str, cli: Run, checkpoint: Path, files: Path
) -> None:
    quick = QUICK[-2:] if command == "quality" else QUICK[4:] if command == "times" else QUICK
    arguments = (command, checkpoint, *options.split(), *quick)
    result = cli(*arguments)
    assert result.code == 0, result.err
    table = Path(f"out/{command}.parquet").read_bytes()
    again = cli(*arguments, "--resume")
    assert again.code == 0 and "is measured already" in again.err, again.err
    os.utime(changed)  # the same content under another time is no change
    assert cli(*arguments, "--resume").code == 0
    rewritten(changed)
    refused = cli(*arguments, "--resume")
    assert refused.code == 2 and "would mix two measurements" in refused.err and named in refused.err, refused.err
    assert Path(f"out/{command}.parquet").read_bytes() == table
    assert cli(*arguments, "--overwrite").code == 0


def test_labels_that_appear_beside_the_data_are_a_change(cli: Run, checkpoint: Path, files: Path) -> None:
    arguments = ("sweep", checkpoint, "--data", "x.npy", *QUICK)
    assert cli(*arguments).code == 0
    np.save("x_labels.npy", np.zeros(64, dtype=int))
    refused = cli(*arguments, "--resume")
    assert refused.code == 2 and "data x_labels.npy changed" in refused.err


def test_the_manifest_has_the_hash_of_everything(cli: Run, checkpoint: Path, files: Path) -> None:
    options = "--data x.npy --model code.py:build --proxy teacher=teacher.safetensors --estimator code.py:ESTIMATOR"
    assert cli("variance", checkpoint, *options.split(), *QUICK).code == 0
    inputs = json.loads(Path("out/manifest.json").read_text())["variance"]["inputs"]
    by_kind: dict[Any, set[str]] = {}
    for entry in inputs:
        assert entry["sha256"] == hashlib.sha256(Path(entry["path"]).read_bytes()).hexdigest()
        by_kind.setdefault(entry.get("kind"), set()).add(Path(entry["path"]).name)
    assert by_kind.pop("code") >= {"code.py"}
    assert by_kind == {None: {checkpoint.name}, "data": {"x.npy"}, "teacher": {"teacher.safetensors"}}


def test_other_data_of_another_checkpoint_are_no_change(cli: Run, save: Callable[..., Path], files: Path) -> None:
    assert cli("sweep", save("first"), "--data", "x.npy", *QUICK).code == 0
    assert cli("sweep", save("second"), "--data", "shards:files=shards", *QUICK, "--resume").code == 0
    assert set(read_table("sweep", "out")["dataset"]) == {"x.npy", "shards:files=shards"}
    inputs = json.loads(Path("out/manifest.json").read_text())["sweep"]["inputs"]
    assert len([entry for entry in inputs if entry.get("kind") == "data"]) == 2
    rewritten("x.npy")
    refused = cli("sweep", save("first"), "--data", "x.npy", *QUICK, "--resume")
    assert refused.code == 2 and "data x.npy" in refused.err


@pytest.mark.parametrize("change", ["content", "same size and time", "cut", "removed", "touched"])
@pytest.mark.parametrize("data", ["x.npy", "shards:files=shards"])
def test_data_that_change_while_they_are_read_give_no_rows(
    change: str, data: str, cli: Run, checkpoint: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mfdiag.measures.run import runner

    path = Path("x.npy" if data == "x.npy" else "shards/1.npy")
    measure = runner.measure_subject

    def measured(*arguments: Any, **options: Any) -> Any:
        frames = measure(*arguments, **options)
        status = path.stat()
        if change == "cut":
            os.truncate(path, 100)
        elif change == "removed":
            path.unlink()
        elif change == "touched":
            os.utime(path)
        else:
            path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
            if change != "content":
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return frames

    monkeypatch.setattr(runner, "measure_subject", measured)
    result = cli("sweep", checkpoint, "--data", data, *QUICK)
    if change == "touched":
        assert result.code == 0
        return
    assert result.code == 2 and "changed meanwhile, so this measurement is not written" in result.err
    assert not Path("out").exists()


def test_an_interrupted_pass_over_other_data_starts_again(
    cli: Run, checkpoint: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mfdiag.gradients.pass_checkpoint._SECONDS_BETWEEN_SAVES", 0)
    arguments = ("variance", checkpoint, "--data", "x.npy", *QUICK, "--chunk", "10")
    from mfdiag.gradients import pass_checkpoint

    save, saves = pass_checkpoint.PassCheckpoint.save, []

    def interrupted(self: Any, state: dict[str, Any]) -> None:
        save(self, state)
        saves.append(None)
        if len(saves) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(pass_checkpoint.PassCheckpoint, "save", interrupted)
    assert cli(*arguments).code == 3
    rewritten("x.npy")
    assert cli(*arguments, "--resume").code == 0
    assert cli(*arguments[:-4], "--out", "whole", "--chunk", "10").code == 0
    assert read_table("variance", "out").equals(read_table("variance", "whole"))


def test_a_card_of_the_user_is_compared(cli: Run, files: Path) -> None:
    from mfdiag.models.networks.mlp import MLP

    torch.save(MLP(2, hidden=8, depth=1).state_dict(), "w.pt")
    arguments = ("sweep", "w.pt", "--model", "card.yaml", "--data", "x.npy", *QUICK)
    result = cli(*arguments)
    assert result.code == 0, result.err
    rewritten("ours.yaml")
    refused = cli(*arguments, "--resume")
    assert refused.code == 2 and "card ours.yaml" in refused.err


def test_training_goes_on_with_the_same_data_alone(cli: Run, files: Path) -> None:
    network = "{name: mlp, arguments: {dim: 2, hidden: 8, depth: 1}}"
    spec = f"data: x.npy\ntimes: uniform\nmodel: {network}\nbatch_size: 8\nsteps: 4\n"
    Path("spec.yaml").write_text(spec)
    assert cli("train", "spec.yaml", "--out", "model").code == 0
    Path("spec.yaml").write_text(spec.replace("steps: 4", "steps: 6"))
    assert cli("train", "spec.yaml", "--out", "model").code == 0
    rewritten("x.npy")
    Path("spec.yaml").write_text(spec.replace("steps: 4", "steps: 8"))
    refused = cli("train", "spec.yaml", "--out", "model")
    assert refused.code == 2 and "come from another specification: model (data x.npy)" in refused.err
    assert cli("train", "spec.yaml", "--out", "model", "--overwrite").code == 0
