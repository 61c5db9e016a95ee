"""inspect_checkpoint tells what is in a file, and what is not, without running or loading it."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mfdiag.errors import InputError
from mfdiag.models.checkpoint import bundled, save_checkpoint
from mfdiag.models.description import Architecture, Description
from mfdiag.models.inspection import inspect_checkpoint
from mfdiag.models.networks.mlp import MLP


@pytest.fixture
def model() -> MLP:
    return MLP(2, hidden=4, depth=1)


def test_own_checkpoint(tmp_path: Path, model: MLP) -> None:
    path = tmp_path / "model.safetensors"
    description = Description(
        architecture=Architecture(name="mlp", arguments={"dim": 2}), times="uniform", data="moons", step=3, seed=0
    )
    save_checkpoint(path, model, model.state_dict(), description)
    inspection = inspect_checkpoint(path)
    assert (inspection.container, inspection.size_bytes, inspection.description) == (
        "safetensors",
        path.stat().st_size,
        description,
    )
    assert [(s.key, s.tensors, s.parameters, s.dtypes) for s in inspection.weights] == [
        ("raw", 4, 30, {"float32": 4}),
        ("ema", 4, 30, {"float32": 4}),
    ]
    assert {(i.weights, tuple(i.shape), i.dtype) for i in inspection.tensors if i.name == "layers.0.weight"} == {
        ("raw", (4, 4), "float32"),
        ("ema", (4, 4), "float32"),
    }
    assert inspection.entries == [] and inspection.notes == []
    assert inspection.model_dump(mode="json")["path"] == str(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_foreign_torch_file(tmp_path: Path, model: MLP, zipped: bool) -> None:
    path = tmp_path / "foreign.pt"
    args = argparse.Namespace(lr=0.1, betas=(0.9, 0.99), out=Path("runs"))
    content = {"model": model.state_dict(), "ema": model.half().state_dict(), "epoch": 4, "args": args}
    torch.save(content | {"best": torch.tensor(1.0)}, path, _use_new_zipfile_serialization=zipped)
    inspection = inspect_checkpoint(path)
    assert inspection.container == ("torch zip" if zipped else "torch legacy")
    assert [(s.key, s.dtypes) for s in inspection.weights] == [("model", {"float32": 4}), ("ema", {"float16": 4})]
    entries = {entry.name: (entry.type, entry.values) for entry in inspection.entries}
    assert entries["epoch"] == ("int", {"": 4}) and entries["best"] == ("Tensor", {})
    assert entries["args"] == ("Namespace", {"lr": 0.1, "out": "runs"})
    assert any("--model" in note for note in inspection.notes)
    assert any("without their values" in note for note in inspection.notes)


def test_foreign_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"w": torch.ones(2, 3, dtype=torch.bfloat16)}, path, metadata={"format": "pt"})
    inspection = inspect_checkpoint(path)
    assert [(s.key, s.parameters, s.dtypes) for s in inspection.weights] == [("", 6, {"bfloat16": 1})]
    assert [(e.name, e.values) for e in inspection.entries] == [("format", {"": "pt"})]


def test_wrong_description_is_a_note(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"raw.w": torch.ones(1)}, path, metadata={"mfdiag": "{}"})
    inspection = inspect_checkpoint(path)
    assert inspection.description is None and "metadata" in inspection.notes[0]


def test_code_is_refused(tmp_path: Path, model: MLP) -> None:
    torch.save(model, tmp_path / "whole.pt")
    with pytest.raises(InputError, match="runs no code"):
        inspect_checkpoint(tmp_path / "whole.pt")


def test_bundled_checkpoint_is_small_and_described() -> None:
    inspection = inspect_checkpoint(bundled())
    assert inspection.description is not None and inspection.description.data == "eight_gaussians"
    assert inspection.size_bytes <= 500_000 and {s.key for s in inspection.weights} == {"raw", "ema"}


CHILD = """
import resource, sys
from mfdiag.models.inspection import inspect_checkpoint
inspect_checkpoint(sys.argv[1])
usage = resource.getrusage(resource.RUSAGE_SELF)
assert "torch" not in sys.modules
print(usage.ru_utime + usage.ru_stime, open("/proc/self/status").read())
"""


def cost(path: Path) -> tuple[float, float]:
    """Seconds of processor time and peak memory in MB of a process that inspects a file, without torch."""
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[0]), int(re.findall(r"VmHWM:\s+(\d+) kB", done.stdout)[0]) * 1024 / 1e6


@pytest.mark.parametrize("kind", ["safetensors", "torch zip", "torch legacy"])
def test_large_files_are_not_held_in_memory(tmp_path: Path, kind: str) -> None:
    """A file of 100 MB costs less than the aim for one of 500 MB, 200 MB and 2 s, and no more than a small one."""
    costs = []
    for rows in (1, 25_000_000):
        path, state = tmp_path / kind, {"w": torch.zeros(rows)}
        if kind == "safetensors":
            save_file(state, path)
        else:
            torch.save(state, path, _use_new_zipfile_serialization=kind == "torch zip")
        costs.append(cost(path))
    (_, small), (seconds, large) = costs
    assert large < 150 and large - small < 15 and seconds < 2
