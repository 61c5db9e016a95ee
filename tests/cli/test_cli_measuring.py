"""The measuring commands from end to end: tables, manifest, figures, and what goes to which stream."""

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

from mfdiag.models.checkpoint import bundled
from mfdiag.storage import sha256_of
from mfdiag.tables import read_table

Run = Callable[..., Any]
FIGURES = {
    "sweep": {"bias_variance"},
    "variance": {"layers", "loss_by_time", "velocity_field", "concentration"},
    "coefficient": {"beta_map", "batch_optimum"},
}
QUICK = ("--samples", "80", "--bins", "none")


@pytest.mark.parametrize("table", FIGURES)
def test_bundled_checkpoint_from_end_to_end(table: str, cli: Run, tmp_path: Path) -> None:
    result = cli(table, "--samples", "400", "--bins", "2,2", "--out", tmp_path)
    assert result.code == 0, result.err
    assert "bundled one" in result.err and f"tables: {tmp_path / table}.parquet" in result.err
    assert result.out.startswith(f"{table} of bundled:eight_gaussians, step 20,000\n")
    assert "note" not in result.out and "…" not in result.out.split("\n")[1], "columns are not cut"

    frame = read_table(table, tmp_path)
    assert set(frame["checkpoint"]) == {"bundled:eight_gaussians"} and set(frame["step"]) == {20_000}
    assert set(frame["dataset"]) == {"eight_gaussians"} and set(frame["times"]) == {"logit_normal:-0.4,1,0.75"}
    assert frame.loc[frame["layer"].eq("all") & frame["t_low"].isna(), "value"].notna().all()

    entry = json.loads((tmp_path / "manifest.json").read_text())[table]
    assert entry["inputs"] == [{"path": "bundled:eight_gaussians", "sha256": sha256_of(bundled())}]
    written = {f"{name}.parquet" for name in ([table, "samples"] if table == "variance" else [table])}
    assert entry["outputs"] == {name: sha256_of(tmp_path / name) for name in written}
    assert entry["command"][1:3] == [table, "--samples"] and entry["seeds"] == [0]
    assert entry["specification"]["samples"] == 400 and entry["specification"]["weights"] == "raw"
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == FIGURES[table]
    assert {path.name for path in tmp_path.iterdir()} == {*written, "manifest.json", "figures"}, "no leftovers"


def test_variance_lists_the_samples_with_the_largest_gradients(cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    result = cli("variance", checkpoint, *QUICK, "--estimator", "meanflow", "--out", tmp_path)
    lines = result.out[result.out.index("samples with the largest |G|^2") :].splitlines()[3:]
    samples = read_table("samples", tmp_path).query("quantity == 'grad_norm2'")
    largest = samples.sort_values("value", ascending=False)[:5]
    assert [int(line.split()[1]) for line in lines] == largest["index"].tolist()
    shares = 100 * largest["value"] / samples["value"].sum()
    assert [float(line.split()[-2]) for line in lines] == pytest.approx(shares.tolist(), abs=0.051)


def test_extras_are_measured_and_told(cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    result = cli("variance", checkpoint, *QUICK, "--extra", "semi_gradient_gap", "--out", tmp_path)
    assert result.code == 0 and "semi_gradient_gap_noise" in result.out
    entry = json.loads((tmp_path / "manifest.json").read_text())["variance"]
    assert entry["specification"]["extras"] == ["semi_gradient_gap"]


@pytest.mark.parametrize("table", FIGURES)
def test_every_row_as_csv_and_json(table: str, cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    for form in ("csv", "json"):
        result = cli(table, checkpoint, *QUICK, "--format", form, "--quiet", "--out", tmp_path / form)
        assert result.code == 0 and result.err == ""
        stored = read_table(table, tmp_path / form)
        shown = pd.read_csv(StringIO(result.out)) if form == "csv" else pd.DataFrame(json.loads(result.out))
        assert list(shown.columns) == list(stored.columns)
        assert shown["quantity"].tolist() == stored["quantity"].tolist()
        finite = np.isfinite(stored["value"])
        np.testing.assert_allclose(shown["value"][finite].astype(float), stored["value"][finite], rtol=1e-12)


def test_several_checkpoints_share_a_table_and_its_samples(cli: Run, save: Run, tmp_path: Path) -> None:
    twins = [save("early", 1_000), save("late", 2_000)]
    other = save("other", 3_000, seed=1)
    out = tmp_path / "out"
    result = cli("variance", *twins, other, *QUICK, "--out", out)
    assert result.code == 0 and result.out.startswith("variance of 3 models and settings")
    words = [line.split()[:2] for line in result.out.splitlines()]
    assert words[words.index(["checkpoint", "step"]) + 1 :][:3] == [
        ["early", "1,000"],
        ["late", "2,000"],
        ["other", "3,000"],
    ]
    frame, samples = read_table("variance", out), read_table("samples", out)
    assert [*dict.fromkeys(frame["step"])] == [1_000, 2_000, 3_000]
    early, late, different = (part.reset_index(drop=True) for _, part in frame.groupby("step"))
    pd.testing.assert_series_equal(early["value"], late["value"])
    assert not np.allclose(early["value"], different["value"])
    for name in ("r", "t"):  # common random numbers: every checkpoint meets the same samples
        drawn = samples.pivot_table(index="index", columns="step", values=name)
        assert (drawn.nunique(axis=1) == 1).all()


def test_a_checkpoint_named_twice_is_measured_once(cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    result = cli("sweep", checkpoint, checkpoint, *QUICK, "--out", tmp_path / "out")
    assert result.code == 0 and "is measured already" in result.err


def test_options_reach_the_tables(cli: Run, save: Run, tmp_path: Path) -> None:
    own, teacher = save("own"), save("teacher", seed=1)
    common = (own, "--samples", "150", "--quiet")
    out = tmp_path / "sweep"
    options = ("--beta", "0,0.5", "--gamma", "0:1:1", "--batch-size", "8", "--batch-size", "16", "--by", "layer")
    assert cli("sweep", *common, *options, "--seed", "3", "--bins", "1,2", "--out", out).code == 0
    frame = read_table("sweep", out)
    assert set(frame["beta"].dropna()) == {0, 0.5} and set(frame["gamma"].dropna()) == {0, 1}
    assert set(frame.loc[frame["beta"].notna(), "batch_size"]) == {1, 8, 16}
    assert set(frame["seed"]) == {3} and len(set(frame["layer"])) > 1 and set(frame["t_high"].dropna()) == {0.5, 1}

    out = tmp_path / "variance"
    options = ("--estimator", "plane:0.5,0.5", "--estimator", "meanflow", "--weighting", "adaptive:1,0.01")
    options += ("--times", "restricted:0.2", "--proxy", f"teacher={teacher}", "--weights", "ema", "--by", "time")
    assert cli("variance", *common, *options, "--out", out).code == 0
    frame = read_table("variance", out)
    assert set(frame["estimator"].dropna()) == {"plane:0.5,0.5", "meanflow"}
    assert set(frame["weighting"]) == {"adaptive:1,0.01"} and set(frame["times"]) == {"restricted:0.2"}
    assert set(frame["proxy"]) == {f"teacher={teacher}"} and frame["t_low"].nunique() == 10

    out = tmp_path / "all"
    assert cli("variance", *common, "--estimator", "all", "--by", "none", "--out", out).code == 0
    assert {"meanflow", "ema_tangent", "distillation"} <= set(read_table("variance", out)["estimator"].dropna())


def test_what_changes_no_number(cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    values = []
    for k, options in enumerate([(), ("--chunk", "7"), ("--engine", "reference")]):
        out = tmp_path / str(k)
        assert cli("sweep", checkpoint, *QUICK, "--dtype", "float64", *options, "--out", out).code == 0
        values.append(read_table("sweep", out)["value"])
    np.testing.assert_allclose(values[1], values[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(values[2], values[0], rtol=1e-9, atol=1e-12)


def test_a_stratified_map_has_cells_and_no_summary(cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    result = cli("coefficient", checkpoint, "--times", "grid:r_bins=2,t_bins=3", "--samples", "500", "--out", tmp_path)
    assert result.code == 0 and result.out == "" and "no row is over all times" in result.err
    frame = read_table("coefficient", tmp_path)
    assert frame["r_low"].notna().all() and frame.groupby(["r_low", "t_low"]).ngroups == 5


FACTORY = """
from mfdiag.models.networks.mlp import MLP

def network():
    return MLP(2, hidden=8, depth=1)
"""


VELOCITY = """
import torch
from torch import nn


class Velocity(nn.Linear):
    def forward(self, x, t):
        return super().forward(torch.cat([x, t[:, None]], dim=1))


def network():
    return Velocity(3, 2)
"""


def test_a_network_without_r_is_measured_at_r_equal_to_t(cli: Run, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "velocity.pt")
    (tmp_path / "network.py").write_text(VELOCITY)
    card = "network: {factory: network.py:network}\ncall: {arguments: [x, t]}\noutput: {average: false}\n"
    (tmp_path / "card.yaml").write_text(card)
    options = ("--model", tmp_path / "card.yaml", "--data", "two_moons", "--samples", 64, "--out", tmp_path / "out")
    result = cli("variance", tmp_path / "velocity.pt", *options)
    assert result.code == 0 and "using r = t, since the network has no r, --times restricted:0" in result.err
    samples = read_table("samples", tmp_path / "out")
    assert (samples["r"] == samples["t"]).all()


def test_a_foreign_checkpoint_with_its_own_data(cli: Run, tmp_path: Path) -> None:
    from mfdiag.models.networks.mlp import MLP

    state = MLP(2, hidden=8, depth=1).state_dict()
    torch.save({"model": state, "ema": state, "step": 12}, tmp_path / "foreign.pt")
    (tmp_path / "network.py").write_text(FACTORY)
    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(50, 2)))
    command = ("sweep", tmp_path / "foreign.pt", *QUICK, "--out", tmp_path / "out")
    result = cli(*command)
    assert result.code == 2 and "--model FILE.py:factory" in result.err
    command += ("--model", f"{tmp_path / 'network.py'}:network")
    result = cli(*command)
    assert result.code == 2 and "pass --data" in result.err
    result = cli(*command, "--data", tmp_path / "points.npy")
    assert result.code == 0 and "does not say how (r, t) were drawn" in result.err
    frame = read_table("sweep", tmp_path / "out")
    assert (
        set(frame["step"]) == {12}
        and set(frame["proxy"]) == {"ema"}
        and "conditional_variance" in set(frame["quantity"])
    )
    entry = json.loads((tmp_path / "out" / "manifest.json").read_text())["sweep"]
    assert entry["specification"]["model"] == f"{tmp_path / 'network.py'}:network"
