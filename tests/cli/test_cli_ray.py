"""`--launcher ray`: the tables of one process, whatever dies or fails in between."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import Run
from ray_tasks import double

import mfdiag
from mfdiag.errors import InputError
from mfdiag.gradients.pass_checkpoint import PassCheckpoint
from mfdiag.measures.quality import QualityJob, QualityRequest
from mfdiag.measures.run.ray_launcher import RayLauncher, Task
from mfdiag.measures.run.subject import SubjectOptions
from mfdiag.tables import read_table

Save = Callable[..., Path]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster of two nodes with a processor each; its address."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 2**27, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    cluster.add_node(**{name: value for name, value in options.items() if name != "include_dashboard"})
    yield cluster.address
    cluster.shutdown()


CODE = """
import os
import signal
import sys
from pathlib import Path

import torch

from mfdiag.models.networks.mlp import MLP

HERE = Path(__file__).parent
IN_WORKER = os.environ.get("RAY_RAYLET_PID") is not None

def die_once():
    if IN_WORKER and not (HERE / "died").exists():
        (HERE / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)

class Unlucky(MLP):
    def forward(self, x, r, t, y=None):
        step = {float(text): name for name, text in zip(("die", "fail"), (HERE / "weights").read_text().split())}
        what = step.get(float(next(self.parameters()).flatten()[0]))
        if what == "die":
            die_once()
        if what == "fail" and IN_WORKER:
            raise RuntimeError("out of luck")
        return super().forward(x, r, t, y)

def network():
    return Unlucky(2, hidden=8, depth=1)

class Noise(torch.nn.Module):
    def forward(self, z, labels):
        if list(HERE.glob("shared/grid/*/state.pt")):
            die_once()
        return z

def source():
    return Noise()
"""


def test_a_dead_worker_is_replaced_and_a_failed_checkpoint_leaves_the_others(
    cluster: str, cli: Run, save: Save, tmp_path: Path
) -> None:
    (tmp_path / "code.py").write_text(CODE)
    checkpoints = [save("fails", 1), save("dies", 2, seed=1), save("lives", 3, seed=2)]
    weights = [float(next(iter(mfdiag.load_model(path).module.parameters())).flatten()[0]) for path in checkpoints]
    (tmp_path / "weights").write_text(f"{weights[1]} {weights[0]}")
    command = (
        "variance",
        *checkpoints,
        "--samples",
        80,
        "--bins",
        "none",
        "--model",
        f"{tmp_path / 'code.py'}:network",
    )
    shared, one = tmp_path / "shared", tmp_path / "one"
    result = cli(*command, "--out", shared, "--launcher", "ray", "--address", cluster)
    assert result.code == 2 and result.out == "" and (tmp_path / "died").exists(), result.err
    assert f"mfdiag: 1 of 3 cells failed: {checkpoints[0]}: The model cannot be evaluated" in result.err
    assert f"{checkpoints[1]} took " in result.err and f"{checkpoints[2]} took " in result.err
    assert set(read_table("variance", shared)["step"]) == {2, 3}
    assert cli(*command, "--out", one).code == 0
    result = cli(*command, "--out", shared, "--resume")
    assert result.code == 0 and result.err.count("is measured already") == 2
    for name in ("variance", "samples"):
        rows, expected = (read_table(name, out).sort_values("step", kind="stable") for out in (shared, one))
        pd.testing.assert_frame_equal(rows.reset_index(drop=True), expected.reset_index(drop=True))


GRID = """
data: two_moons
source: {code}:source
model: {{name: mlp, arguments: {{dim: 2, hidden: 4, depth: 1}}}}
times: uniform
steps: 6
batch_size: 8
save_every: 2
measure_every: 3
measure_samples: 128
axes:
  loss.beta: [0, 1]
"""


def test_cells_of_a_grid_train_as_without_ray(cluster: str, cli: Run, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "grid.yaml").write_text(GRID.format(code=tmp_path / "code.py"))
    command = ("train", tmp_path / "grid.yaml", "--trust-code")
    shared, one = tmp_path / "shared" / "grid", tmp_path / "one" / "grid"
    result = cli(*command, "--out", shared, "--launcher", "ray", "--address", cluster)
    assert result.code == 0 and (tmp_path / "died").exists(), result.err
    assert result.err.count(" took ") == 2
    assert cli(*command, "--out", one).code == 0
    pd.testing.assert_frame_equal(read_table("training", shared), read_table("training", one))
    for cell in ("beta=0", "beta=1"):
        assert (shared / cell / "model.safetensors").read_bytes() == (one / cell / "model.safetensors").read_bytes()


def test_cells_fail_alone_or_end_the_run(cluster: str) -> None:
    tasks = [Task(str(number), double, (number,)) for number in (-1, 1, 2)]
    notes, progress = list[str](), list[int]()
    options: dict[str, Any] = {"say": notes.append, "progress": lambda label, done, total: progress.append(done)}
    cells = list(RayLauncher(cluster).run(tasks, "cpu", **options))
    results = {cell.number: (cell.result, cell.failure) for cell in cells}
    assert results == {0: (None, "Negative"), 1: (2, None), 2: (4, None)}
    assert "note of 1" in notes and "-1 failed: Negative." in notes and progress == [0, 1, 2, 3]
    with pytest.raises(InputError, match=r"-1 failed: Negative\. The others were stopped"):
        list(RayLauncher(cluster, fail_fast=True).run(tasks[:1], "cpu", **options))


def test_sample_quality_of_parts_is_that_of_the_whole(cli: Run, save: Save, tmp_path: Path) -> None:
    """What a worker does, without Ray."""
    checkpoints = [save("first", 1), save("second", 2, seed=1)]
    command = ("quality", *checkpoints, "--samples", 64, "--subsample", 8, "--weights", "raw,ema", "--nfe", "1")
    command += ("--metric", "mmd2", "--metric", "frechet_distance")
    assert cli(*command, "--out", tmp_path / "one").code == 0
    request = QualityRequest(["mmd2", "frechet_distance"], [1], ["raw", "ema"], 64, 8, 0, None, torch.float32)
    job = QualityJob(checkpoints, SubjectOptions(proxy="self"), request, recorded={}, progress=None, say=print)
    subjects, frames = job.subjects(), []
    for k, subject in enumerate(subjects):
        part = pickle.loads(pickle.dumps(job.part(k)))
        (own,) = part.subjects()
        assert part.identity(own) == job.identity(subject)
        frames.append(part.measure(own, PassCheckpoint(tmp_path / "state", "key"))["quality"])
    whole = read_table("quality", tmp_path / "one")
    values = [frame["value"].to_numpy() for frame in (pd.concat(frames), whole[whole["quantity"] == "value"])]
    np.testing.assert_array_equal(*values)


def test_the_launcher_needs_ray(cli: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = ("--samples", 64, "--out", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "ray", None)
    result = cli("sweep", checkpoint, "--launcher", "ray", *out)
    assert result.code == 2 and "pip install 'mfdiag[ray]'" in result.err
    result = cli("sweep", checkpoint, "--fail-fast", *out)
    assert result.code == 2 and "--launcher ray" in result.err
    result = cli("sweep", checkpoint, "--launcher", "ray", "--device", "cuda:1", *out)
    assert result.code == 2 and "--device cpu or cuda" in result.err
