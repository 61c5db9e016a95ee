"""`mfdiag quality`: tables, options, seeds, resuming and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import mfdiag
from mfdiag.models.checkpoint import bundled, load_model
from mfdiag.quality.metrics import default_metrics
from mfdiag.storage import sha256_of
from mfdiag.tables import read_table

Run = Callable[..., Any]
QUICK = ("--samples", "128", "--subsample", "16")


def test_bundled_checkpoint_from_end_to_end(cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    result = cli("quality", *QUICK, "--weights", "raw,ema", "--nfe", "1, 2", "--out", tmp_path)
    assert result.code == 0, result.err
    assert "bundled one" in result.err and f"tables: {tmp_path / 'quality'}.parquet" in result.err
    title, *_, head, rule = result.out.partition("─\n")[0].splitlines()
    lines = result.out.partition(f"{rule}─\n")[2].splitlines()
    assert title == "quality of bundled:eight_gaussians, step 20,000"
    assert all(name in head for name in ("raw, NFE 1", "raw, NFE 2", "ema, NFE 1", "ema, NFE 2"))
    assert {line.split()[0] for line in lines if line.strip()} == set(default_metrics(held_out=False))

    frame = read_table("quality", tmp_path)
    assert len(frame) == 4 * len(default_metrics(held_out=False)) and set(frame["checkpoint"]) == {
        "bundled:eight_gaussians"
    }
    assert set(frame["weights"]) == {"raw", "ema"} and set(frame["nfe"]) == {1, 2} and set(frame["step"]) == {20_000}
    entry = json.loads((tmp_path / "manifest.json").read_text())["quality"]
    assert entry["inputs"] == [{"path": "bundled:eight_gaussians", "sha256": sha256_of(bundled())}]
    assert entry["outputs"] == {"quality.parquet": sha256_of(tmp_path / "quality.parquet")}
    assert entry["specification"]["weights"] == ["raw", "ema"] and entry["specification"]["samples"] == 128
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert written == {"quality.svg", "quality.pdf", "quality.png"}


def test_held_out_data(cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("train", "fresh"):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(96, 2)))
    options = ("--data", tmp_path / "train.npy", *QUICK, "--nfe", "1", "--quiet", "--out", tmp_path / "out")
    refused = cli("quality", checkpoint, *options, "--metric", "memorization")
    assert refused.code == 2 and "pass --held-out DATA" in refused.err
    result = cli("quality", checkpoint, *options, "--held-out", tmp_path / "fresh.npy")
    assert result.code == 0, result.err
    frame = read_table("quality", tmp_path / "out")
    assert set(frame["metric"]) == set(default_metrics(held_out=True))
    value = frame.set_index("metric")["value"]["memorization"]
    expected = mfdiag.measure_quality(
        load_model(checkpoint).module,
        np.load(tmp_path / "train.npy"),
        held_out=np.load(tmp_path / "fresh.npy"),
        metrics=["memorization"],
        nfe=[1],
        samples=128,
    )
    assert value == pytest.approx(expected["value"].item())


def test_the_same_numbers_as_in_memory(cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    options = ("--seed", "3", "--metric", "mmd2", "--metric", "recall", "--nfe", "3", "--weights", "ema")
    result = cli("quality", checkpoint, *QUICK, *options, "--format", "csv", "--quiet", "--out", tmp_path)
    shown = pd.read_csv(StringIO(result.out))
    expected = mfdiag.measure_quality(
        load_model(checkpoint, weights="ema").module,
        "gaussian:2,0,1",
        nfe=[3],
        metrics=["mmd2", "recall"],
        samples=128,
        subsample=16,
        seed=3,
    )
    assert shown["metric"].tolist() == ["mmd2", "recall"] and result.err == ""
    np.testing.assert_allclose(shown["value"], expected["value"], rtol=1e-12)


def seeds(folder: Path, step: int = 10) -> list[Path]:
    """Two checkpoints that differ in the training seed alone."""
    from mfdiag.models.checkpoint import save_checkpoint
    from mfdiag.models.description import Architecture, Description
    from mfdiag.models.networks.mlp import MLP

    paths = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = MLP(2, hidden=8, depth=1)
        description = Description(
            architecture=Architecture(name="mlp", arguments={"dim": 2, "hidden": 8, "depth": 1}),
            times="uniform",
            data="gaussian:2,0,1",
            step=step,
            seed=seed,
            specification={"seed": seed, "loss": {"beta": 0.5}},
        )
        paths.append(folder / f"step={step},seed={seed}" / "model.safetensors")
        save_checkpoint(paths[-1], model, None, description)
    return paths


def test_checkpoints_that_differ_in_the_seed_also_have_a_mean(cli: Run, save: Run, tmp_path: Path) -> None:
    group, later = seeds(tmp_path), seeds(tmp_path, step=20)[:1]
    out = tmp_path / "out"
    result = cli(
        "quality", *group, *later, save(), *QUICK, "--metric", "sliced_wasserstein", "--nfe", "1", "--out", out
    )
    assert result.code == 0, result.err
    frame = read_table("quality", out)
    (mean,) = frame[frame["quantity"] == "mean_over_seeds"].to_dict("records")
    values = frame.loc[frame["checkpoint"].isin(map(str, group)), "value"]
    assert mean["value"] == pytest.approx(values.mean()) and mean["step"] == 10 and len(frame) == 5
    assert mean["checkpoint"] == f"{tmp_path}/step=10,seed={{0,1}}/model.safetensors"
    assert "step=10,seed={0,1}" in result.out and "quality of 5 models and settings" in result.out


def test_resume_goes_on_with_the_rest_and_ends_the_same(
    cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mfdiag.measures.run.quality_api import Prepared

    group = seeds(tmp_path)
    chosen = ("--metric", "recall", "--nfe", "1", "--quiet")
    command = ("quality", *group, *QUICK, *chosen)
    assert cli(*command, "--out", tmp_path / "whole").code == 0
    measure, out = Prepared.measure, tmp_path / "out"

    def interrupted(self: Prepared, *arguments: Any, **named: Any) -> pd.DataFrame:
        if named["checkpoint"] == str(group[1]):
            raise KeyboardInterrupt
        return measure(self, *arguments, **named)

    monkeypatch.setattr(Prepared, "measure", interrupted)
    result = cli(*command, "--out", out)
    assert result.code == 3 and "resume with --resume" in result.err
    assert set(read_table("quality", out)["checkpoint"]) == {str(group[0])}
    monkeypatch.setattr(Prepared, "measure", measure)
    assert cli(*command, "--out", out).code == 2  # neither --resume nor --overwrite
    changed = cli(*command, "--seed", "1", "--out", out, "--resume")
    assert changed.code == 2 and "other options (seed)" in changed.err
    assert cli(*command, "--out", out, "--resume").code == 0
    pd.testing.assert_frame_equal(read_table("quality", out), read_table("quality", tmp_path / "whole"))


def test_features_of_the_users_own(cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "features.py").write_text("def radius():\n    return lambda x: x.norm(dim=1)\n\nthree = lambda: 3\n")
    features = f"{tmp_path / 'features.py'}:radius"
    options = ("--metric", "frechet_distance", "--nfe", "1", "--features", features)
    assert cli("quality", checkpoint, *QUICK, *options, "--quiet", "--out", tmp_path / "out").code == 0
    assert read_table("quality", tmp_path / "out")["features"].tolist() == [features]
    refused = cli("quality", checkpoint, *QUICK, "--features", f"{tmp_path / 'features.py'}:three", "--out", tmp_path)
    assert refused.code == 2 and "a map from samples to features, but it returned int" in refused.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--nfe", "1,0"), "--nfe takes numbers of steps from 1 to 10,000, as in 1,2,4; got '1,0'."),
        (("--nfe", "one"), "--nfe takes numbers of steps"),
        (("--metric", "fid"), "Unknown metric 'fid'"),
        (("--samples", "3"), "--samples must be at least 64"),
        (("--weights", "raw,averaged"), "Expected weights 'averaged'"),
        (("--features", "nothing"), "Expected --features as FILE.py:factory"),
        (("--resume", "--overwrite"), "pass one of the two"),
    ],
)
def test_bad_input_is_one_line(
    options: tuple[str, ...], message: str, cli: Run, checkpoint: Path, tmp_path: Path
) -> None:
    result = cli("quality", checkpoint, *QUICK, *options, "--quiet", "--out", tmp_path / "out")
    assert result.code == 2 and result.out == "" and message in result.err and result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_how_a_network_is_called_is_said(cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.layer = torch.nn.Linear(2, 2)\n\n"
        "    def forward(self, z, t, h):\n        return self.layer(z) + (t - h)[:, None]\n"
    )
    torch.save(torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2)}).state_dict(), tmp_path / "net.pt")
    common = ("net.pt", "--model", "net.py:Net", "--samples", "64")
    result = cli("quality", *common, *QUICK[2:], "--data", "gaussian:2,0,1", "--metric", "mmd2", "--out", "out")
    assert result.code == 0, result.err
    assert result.err.count("Net.forward is called with z = x_t, t = t, h = t - r.") == 1
    assert "--times" not in result.err
