"""`mfdiag train`: grids, killed runs, dry runs, and what other commands read afterwards."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mfdiag.models.checkpoint import load_model
from mfdiag.reporting.grid_table import grid_table
from mfdiag.tables.store import read_json, read_table

Run = Callable[..., Any]

SWEEPS = Path(__file__).parents[2] / "sweeps"
GRID = """\
axes:
  loss.beta: [0, 1]
  seed: [0, 1]
data: gaussian:2,0.5,0.3
model: {name: mlp, arguments: {dim: 2, hidden: 8, depth: 1}}
times: uniform
batch_size: 16
steps: 40
log_every: 10
save_every: 5
measure_every: 20
measure_samples: 128
"""
CELLS = ["beta=0,seed=0", "beta=0,seed=1", "beta=1,seed=0", "beta=1,seed=1"]


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    return path


def test_a_grid(cli: Run, spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    result = cli("train", spec, "--out", out)
    assert result.code == 0, result.err
    assert result.out.splitlines() == [str(out / cell / "model.safetensors") for cell in CELLS]
    frame = read_table("training", out)
    assert list(dict.fromkeys(frame["cell"])) == CELLS
    counts = frame.groupby("quantity").size().to_dict()
    assert counts == {"loss": 16, "grad_norm": 16, "variance": 8, "optimum": 8, "steps": 4}
    assert frame["checkpoint_sha256"].nunique() == 4
    assert torch.load(out / CELLS[0] / "state.pt", weights_only=True)["log"], "plain numbers, which any reader takes"
    variance = frame[frame["quantity"] == "variance"]
    assert (variance["ci_low"] < variance["value"]).all() and (variance["value"] < variance["ci_high"]).all()
    assert read_json(out / "manifest.json")["train"]["specification"] == {"file": str(spec), "text": GRID}
    measured = tmp_path / "measured"
    arguments = ["--samples", "256", "--out", measured, "--quiet"]
    assert cli("variance", *result.out.split(), *arguments).code == 0
    joined = read_table("variance", measured).merge(
        frame[["checkpoint_sha256", "cell"]].drop_duplicates(), on="checkpoint_sha256"
    )
    assert joined["cell"].nunique() == 4, "tables of other commands are joined by the checkpoint's hash"


def test_other_methods_than_the_plane(cli: Run, tmp_path: Path) -> None:
    """Trained, measured on the way as compare does, saved with their name, and no part of the beta grid."""
    spec, out, measured = tmp_path / "grid.yaml", tmp_path / "grid", tmp_path / "measured"
    axes = "axes:\n  loss.estimator: [shortcut, progressive_self_distillation]\n"
    spec.write_text(axes + GRID[GRID.index("data:") :].replace("times: uniform", "times: uniform:r_ne_t=0.5"))
    result = cli("train", spec, "--out", out)
    assert result.code == 0, result.err
    frame = read_table("training", out)
    assert set(frame["estimator"]) == {"shortcut", "progressive_self_distillation"}
    counts = frame.groupby("quantity").size().to_dict()
    assert counts == {"loss": 8, "grad_norm": 8, "variance": 4, "steps": 2}
    checkpoint = out / "estimator=shortcut" / "model.safetensors"
    arguments = [
        "--samples",
        "128",
        "--estimator",
        "shortcut",
        "--by",
        "none",
        "--posterior",
        "none",
        "--out",
        measured,
    ]
    assert cli("compare", checkpoint, *arguments, "--quiet").code == 0
    compared = read_table("compare", measured)
    one = compared[(compared["quantity"] == "variance") & (compared["layer"] == "all") & compared["t_low"].isna()]
    last = frame[(frame["quantity"] == "variance") & (frame["estimator"] == "shortcut")].iloc[-1]
    assert last["value"] == pytest.approx(one["value"].iloc[0], rel=1e-4)
    assert grid_table({"training": frame}).empty


def test_statistics_on_the_way_are_those_of_the_commands(cli: Run, spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    assert cli("train", spec, "--out", out, "--quiet").code == 0
    frame = read_table("training", out)
    row = frame[(frame["cell"] == CELLS[3]) & (frame["step"] == 40)].set_index("quantity")
    options = ["--weights", "raw", "--proxy", "ema", "--times", "uniform", "--posterior", "none", "--samples", "128"]
    options += [out / CELLS[3] / "model.safetensors", "--out", tmp_path / "m", "--seed", "1", "--quiet"]
    assert cli("sweep", *options, "--beta", "1").code == 0
    sweep = read_table("sweep", tmp_path / "m")
    found = sweep[(sweep["quantity"] == "variance") & (sweep["layer"] == "all") & (sweep["space"] == "gradient")]
    pd.testing.assert_series_equal(
        found[["value", "ci_low", "ci_high"]].iloc[0],
        row.loc["variance", ["value", "ci_low", "ci_high"]],
        check_names=False,
        check_dtype=False,
        rtol=1e-4,
    )


def test_the_transformer_of_newcomers_trains(cli: Run, tmp_path: Path) -> None:
    """sweeps/transformer_quick.yaml with fewer steps, measured at its checkpoints."""
    text = (SWEEPS / "transformer_quick.yaml").read_text()
    spec, out = tmp_path / "quick.yaml", tmp_path / "grid"
    spec.write_text(text.replace("steps: 1500", "steps: 4").replace("keep_every: 500", "keep_every: 2"))
    assert cli("train", spec, "--out", out, "--quiet").code == 0
    steps = [out / "beta=0.25" / folder / "model.safetensors" for folder in ("step=2", ".")]
    options = ["--metric", "frechet_distance", "--samples", "64", "--nfe", "1", "--out", tmp_path / "m", "--quiet"]
    assert cli("quality", *steps, *options).code == 0
    table = read_table("quality", tmp_path / "m")
    assert list(table["step"]) == [2, 4] and set(table["run"]) == {"beta=0.25"}


def test_mnist_is_written_from_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (10_000, 28, 28), dtype=np.uint8), rng.integers(0, 10, 10_000)
    images[0] = 255
    np.savez(tmp_path / "all.npz", images=images, labels=labels)
    command = [sys.executable, SWEEPS / "mnist.py", "--file", tmp_path / "all.npz", "--out", tmp_path / "data"]
    subprocess.run(command, check=True)
    train, rest = (np.load(tmp_path / "data" / f"mnist_{part}.npz") for part in ("train", "heldout"))
    assert train["x"].shape == (8_000, 1, 16, 16) and rest["x"].shape == (2_000, 1, 16, 16)
    assert train["x"].dtype == np.float32 and np.abs(train["x"]).max() <= 1
    np.testing.assert_allclose(train["x"][0], 1, atol=1e-6)  # white stays white
    assert (np.concatenate([train["y"], rest["y"]]) == labels).all()


def test_a_killed_run_goes_on_and_ends_the_same(cli: Run, spec: Path, tmp_path: Path) -> None:
    spec.write_text(GRID.replace("steps: 40", "steps: 400").replace("measure_every: 20\n", ""))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli("train", spec, "--out", whole, "--quiet").code == 0
    command = [sys.executable, "-m", "mfdiag", "train", str(spec), "--out", str(parts), "--quiet"]
    process = subprocess.Popen(command)
    state = parts / CELLS[-1] / "state.pt"
    while not state.exists():
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (parts / CELLS[0] / "model.safetensors").exists(), "killed in the middle"
    assert cli("train", spec, "--out", parts, "--quiet").code == 0
    for cell in CELLS:
        one, other = ((folder / cell / "model.safetensors").read_bytes() for folder in (whole, parts))
        assert one == other


def test_two_grids_in_one_folder(cli: Run, spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    for seeds in ("[0, 1]", "[1, 2]"):
        spec.write_text(GRID.replace("seed: [0, 1]", f"seed: {seeds}").replace("steps: 40", "steps: 3"))
        assert cli("train", spec, "--out", out, "--quiet").code == 0
    frame = read_table("training", out)
    last = frame[frame["quantity"] == "steps"]
    assert sorted(last["cell"]) == [f"beta={beta},seed={seed}" for beta in (0, 1) for seed in (0, 1, 2)]


def test_the_quick_experiment_runs(cli: Run, tmp_path: Path) -> None:
    """The shipped specification with 2 steps, from training to the derived table and its figures."""
    text = (SWEEPS / "mixtures_quick.yaml").read_text()
    assert "measure_every: 500" in text
    (tmp_path / "short.yaml").write_text(re.sub(r"steps: \d+", "steps: 2", text).replace("measure_every: 500\n", ""))
    out = tmp_path / "grid"
    result = cli("train", tmp_path / "short.yaml", "--out", out, "--quiet")
    assert result.code == 0, result.err
    some = [path for path in result.out.split() if "mixture_8_8" in path]
    assert len(some) == 6
    options = ["--out", out, "--quiet"]
    assert cli("quality", *some, "--metric", "sliced_wasserstein", "--nfe", "1", "--samples", "256", *options).code == 0
    sweep = ["--beta", "0:1:0.5", "--by", "none", "--samples", "128", "--posterior", "none"]
    assert cli("sweep", *some, *sweep, *options).code == 0
    result = cli("report", tmp_path)
    assert result.code == 0 and "- Training at beta = 1 instead of 0 " in result.out, result.err
    frame = read_table("grid", out)
    assert set(frame["quantity"]) >= {"variance", "variance_ratio", "quality", "quality_ratio", "best_beta"}
    assert {path.stem for path in (out / "figures").iterdir()} >= {"grid_variance", "grid_quality"}
    assert (out / "report.html").stat().st_size > 10_000


def test_dry_run_trains_nothing(cli: Run, spec: Path, tmp_path: Path) -> None:
    result = cli("train", spec, "--out", tmp_path / "none", "--dry-run")
    assert result.code == 0, result.err
    *cells, last = result.out.splitlines()
    assert [line.split()[0] for line in cells] == CELLS
    assert last.startswith("4 models; training takes about 0.0 minutes")
    assert not (tmp_path / "none").exists()


def test_bad_grids_are_one_sentence(cli: Run, spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    assert cli("train", spec, "--out", out, "--quiet").code == 0
    for old, new, expected in (
        ("steps: 40", "steps: 39", "4 of 4 models"),
        ("seed: [0, 1]", "seed: 0", "line 3, axes.seed: expected a list"),
        ("dim: 2", "dim: 3", "shape [2]"),
        ("gaussian:2,0.5,0.3", "gaussain:2,0,1", "Did you mean 'gaussian'"),
    ):
        spec.write_text(GRID.replace(old, new))
        result = cli("train", spec, "--out", out)
        assert result.code == 2 and result.out == "", result
        assert expected in result.err and "Traceback" not in result.err, result.err
    assert cli("train", spec, "--device", "cuda:99").code == 2


def test_axes_of_the_specification_are_in_the_checkpoint(cli: Run, spec: Path, tmp_path: Path) -> None:
    """A model that predicts noise on a path of the user's: named code runs only where the command says so."""
    code = tmp_path / "mine.py"
    code.write_text(
        "import torch\n\n"
        "def path():\n    return (lambda t: torch.cos(t * torch.pi / 2)), (lambda t: torch.sin(t * torch.pi / 2))\n"
    )
    spec.write_text(
        GRID.replace("times: uniform", f"times: uniform\npath: {code}:path\nprediction: eps\nsource: gaussian")
    )
    out = tmp_path / "grid"
    refused = cli("train", spec, "--out", out)
    assert refused.code == 2 and "pass --trust-code to run it" in refused.err and not out.exists()
    assert cli("train", spec, "--out", out, "--trust-code", "--quiet").code == 0
    checkpoint = out / CELLS[0] / "model.safetensors"
    described = load_model(checkpoint).description
    assert described is not None and (described.prediction, described.path) == ("eps", f"{code}:path")
    measured = ["variance", checkpoint, "--samples", "128", "--out", tmp_path / "m"]
    refused = cli(*measured)
    assert refused.code == 2 and f"--path {code}:path" in refused.err
    assert cli(*measured, "--path", f"{code}:path", "--quiet").code == 0
    assert cli("train", spec, "--out", out, "--trust-code", "--quiet").code == 0, "finished cells are recognised"


def test_divergence_is_told_and_the_others_finish(cli: Run, spec: Path, tmp_path: Path) -> None:
    text = GRID.replace("loss.beta: [0, 1]", "learning_rate: [0.001, 1.0e+38]").replace("measure_every: 20\n", "")
    spec.write_text(text)
    result = cli("train", spec, "--out", tmp_path / "grid")
    assert result.code == 2 and "2 of 4 models" in result.err and "rate=1e+38" in result.err
    frame = read_table("training", tmp_path / "grid")
    assert frame["cell"].nunique() == 4
    assert set(frame[frame["cell"].str.contains("0.001")]["status"]) == {"ok"}


def test_images_as_they_lie_are_said_before_they_are_trained_on(cli: Run, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 2)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    for options, said in (("", True), (":mean=127.5,std=127.5", False)):
        model = "model: {name: mlp, arguments: {dim: 2, hidden: 4, depth: 1}}"
        text = f'data: "{tmp_path / "images.npy"}{options}"\n{model}\ntimes: uniform\nsteps: 2\nbatch_size: 4\n'
        (tmp_path / "spec.yaml").write_text(text)
        result = cli("train", tmp_path / "spec.yaml", "--out", tmp_path / f"model{said}", "--compile", "off")
        assert result.code == 0, result.err
        assert ("note: " in result.err and "add mean=127.5,std=127.5 to --data" in result.err) == said
