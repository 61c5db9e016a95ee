"""`mfdiag doctor` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import conditioned
import numpy as np
import pytest
import torch
from command_line import Run
from conditioned import Policy
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mfdiag.models.checkpoint import bundled
from mfdiag.tables.store import read_table


def test_the_bundled_checkpoint_is_healthy(cli: Run, tmp_path: Path) -> None:
    result = cli("doctor", "--samples", "512", "--out", str(tmp_path))
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "doctor.json").read_text())
    assert record["healthy"] and record["verdict"].startswith("Nothing to do")
    assert len(result.out.splitlines()) <= 10
    frame = read_table("doctor", tmp_path)
    assert {"velocity_error", "target_defect", "variance", "tangent_optimum"} <= set(frame["quantity"])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["doctor"]["specification"]["samples"] == 512


@pytest.mark.parametrize("part", ["raw", "ema"])
def test_weights_that_are_not_finite_get_a_verdict(cli: Run, tmp_path: Path, part: str) -> None:
    with safe_open(bundled(), "pt") as file:
        metadata = file.metadata()
    tensors = load_file(bundled())
    name = next(name for name in tensors if name.startswith(part))
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    save_file(tensors, tmp_path / "bad.safetensors", metadata)
    result = cli("doctor", str(tmp_path / "bad.safetensors"), "--samples", "64", "--out", str(tmp_path / "out"))
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out" / "doctor.json").read_text())
    assert record["findings"][0]["code"] == "nonfinite"


@pytest.mark.parametrize("content", ["", "a,b\nx,y\n", "{"])
def test_a_log_that_cannot_be_read_is_refused(cli: Run, tmp_path: Path, content: str) -> None:
    log = tmp_path / "log.csv"
    log.write_text(content)
    result = cli("doctor", "--samples", "64", "--log", str(log), "--out", str(tmp_path / "out"))
    assert result.code == 2
    assert "Expected a training log" in result.err and "Traceback" not in result.err


def test_several_checkpoints_get_one_line_each_and_the_worst_verdict(cli: Run, tmp_path: Path) -> None:
    with safe_open(bundled(), "pt") as file:
        metadata = file.metadata()
    tensors = load_file(bundled())
    broken = {name: torch.full_like(value, torch.nan) for name, value in tensors.items()}
    for name, content in (("good", tensors), ("bad", broken)):
        save_file(content, tmp_path / f"{name}.safetensors", metadata)
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("good", "bad")]
    result = cli("doctor", *paths, "--samples", "64", "--out", str(tmp_path / "out"))
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out" / "doctor.json").read_text())
    assert record["checkpoint"].endswith("bad.safetensors") and not record["healthy"]
    assert [entry["healthy"] for entry in record["checkpoints"]] == [True, False]
    again = cli("doctor", *paths, "--samples", "64", "--out", str(tmp_path / "out"), "--resume")
    assert again.code == 0
    assert json.loads((tmp_path / "out" / "doctor.json").read_text())["checkpoints"] == record["checkpoints"]


def test_a_network_with_conditions_of_another_precision(cli: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    torch.save(Policy().state_dict(), tmp_path / "net.pt")
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(64, 4, 2)), obs=rng.normal(size=(64, 2, 3)))  # float64
    arguments = ("--model", f"{conditioned.__file__}:Policy", "--data", str(tmp_path / "data.npz"), "--samples", "64")
    result = cli("doctor", str(tmp_path / "net.pt"), *arguments, "--out", str(tmp_path / "out"))
    assert result.code == 0, result.err
    assert len(read_table("doctor", tmp_path / "out"))
