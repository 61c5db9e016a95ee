"""A checkpoint folder is measured like the one file of the same weights."""

from __future__ import annotations

from pathlib import Path

import checkpoint_folders as folders
import pytest
import torch
from command_line import Run

from mfdiag.models.networks.mlp import MLP


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_folders_give_the_numbers_of_one_file(cli: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = MLP(2, hidden=8, depth=1).state_dict()
    (tmp_path / "net.py").write_text(
        "from mfdiag.models.networks.mlp import MLP\n\ndef build(): return MLP(2, hidden=8, depth=1)\n"
    )
    torch.save(state, tmp_path / "plain")
    folders.write_zero(tmp_path / "zero", state, stage=3)
    folders.write_dcp(tmp_path / "dcp", {"model": state})
    folders.write_training_script(tmp_path / "script", state, state, steps=0)
    values = {}
    for name in ("plain", "zero", "dcp", "script"):
        words = ("--data", "two_moons", "--times", "uniform", "--samples", 32, "--by", "none", "--format", "csv")
        model = (
            "--model",
            f"{tmp_path / 'net.py'}:build",
            "--estimator",
            "meanflow",
            "--out",
            tmp_path / f"out {name}",
        )
        result = cli("variance", tmp_path / name, *words, *model)
        assert result.code == 0
        values[name] = [line.partition(",self,")[2] for line in result.out.splitlines() if ",self," in line]
        assert ("never updated (optimization_step = 0)" in result.err) == (name == "script")
    assert values["plain"] and all(rows == values["plain"] for rows in values.values())
