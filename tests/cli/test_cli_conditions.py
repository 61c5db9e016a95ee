"""Conditions by name through the command line: data files, cards and networks of the user, to the tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import Run
from conditioned import CASES, arrays_of
from helpers import randomised, row

HERE = Path(__file__).parents[1]
ROWS = 40
CARD = """
network: {factory: "conditioned:Policy"}
call:
  method: unet
  arguments: [x, t, r]
  conditions: {global_cond: {array: obs, encoder: encoder, fold: true}}
objective: {times: uniform}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for case in CASES:
        torch.manual_seed(0)
        torch.save(randomised(CASES[case].network()).state_dict(), f"{case}.pt")
        np.savez(f"{case}.npz", **arrays_of(case, ROWS))
    Path("nets.py").write_text((HERE / "conditioned.py").read_text(encoding="utf-8"), encoding="utf-8")
    Path("policy.yaml").write_text(CARD, encoding="utf-8")
    return tmp_path


def variance(cli: Run, case: str, *options: str, out: str = "out") -> pd.DataFrame:
    result = cli("variance", f"{case}.pt", *options, "--times", "uniform", "--samples", "64", "--bins", "none",
                 "--by", "layer", "--dtype", "float64", "--out", out)  # fmt: skip
    assert result.code == 0, result.err
    assert "of the data" in result.err or "policy.yaml" in result.err
    return pd.read_parquet(Path(out) / "variance.parquet")


def test_a_card_with_an_encoder_measures_the_encoder_too(cli: Run, folder: Path) -> None:
    by_card = variance(cli, "policy", "--model", "policy.yaml", "--data", "policy.npz")
    by_name = variance(cli, "policy", "--model", "nets.py:Policy", "--data", "policy.npz", out="names")
    layers = set(by_card["layer"])
    assert {"encoder.0", "encoder.2", "time", "film"} <= layers == set(by_name["layer"])
    for layer in layers:
        keys = {"layer": layer, "quantity": "variance", "estimator": "meanflow"}
        assert row(by_card, **keys)["value"] == pytest.approx(row(by_name, **keys)["value"], rel=1e-10)
        assert row(by_card, **keys)["value"] > 0
