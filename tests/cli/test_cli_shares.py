"""The share of pairs with r != t: one meaning on the command line, in files of this version and of older ones."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from command_line import Run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mfdiag.measures.run.api import measure
from mfdiag.models.cards.card_files import load_card, shipped_cards
from mfdiag.models.checkpoint import bundled, load_model
from mfdiag.models.networks.mlp import MLP
from mfdiag.tables.store import read_table
from mfdiag.training.grid import load_grid

SPEC = "data: gaussian:2,0,1\nmodel: {name: mlp, arguments: {dim: 2, hidden: 4, depth: 1}}\nsteps: 2\nbatch_size: 4\n"
SWEEPS = Path(__file__).parents[2] / "sweeps"


def aged(path: Path, times: str) -> None:
    """Give a checkpoint the times that an older version wrote, in its description and its specification."""
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    description = json.loads(metadata["mfdiag"])
    description["times"] = times
    if description["specification"]:
        description["specification"]["times"] = times
    save_file(tensors, path, metadata={"mfdiag": json.dumps(description)})


def variance(cli: Run, checkpoint: Path, out: Path, *options: object) -> tuple[pd.DataFrame, str]:
    arguments = (checkpoint, "--samples", 64, "--by", "none", "--estimator", "meanflow", "--out", out)
    result = cli("variance", *arguments, *options)
    assert result.code == 0, result.err
    return read_table("variance", out), result.err


def test_an_old_description_gives_the_old_numbers_and_no_note(cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    aged(checkpoint, "uniform:0.7")
    old, said = variance(cli, checkpoint, tmp_path / "old")
    assert "--times" not in said and set(old["times"]) == {"uniform:r_ne_t=0.3"}
    named, said = variance(cli, checkpoint, tmp_path / "named", "--times", "uniform:r_eq_t=0.7")
    assert "is read as uniform:r_ne_t=0.3" in said
    new, said = variance(cli, checkpoint, tmp_path / "new", "--times", "uniform:0.3")
    assert "is read as uniform:r_ne_t=0.3" in said and "Up to version 0.2" in said
    for other in (named, new):
        pd.testing.assert_frame_equal(old, other)
    result = cli("inspect", checkpoint)
    assert "uniform:r_ne_t=0.3" in result.out


def test_no_share_is_flow_matching_and_said(cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    _, said = variance(cli, checkpoint, tmp_path / "out", "--times", "uniform:0")
    assert "--times uniform:r_ne_t=0 draws r = t for every pair" in said


def test_training_says_and_writes_the_meaning(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(f"{SPEC}times: uniform:0.7\n")
    result = cli("train", tmp_path / "spec.yaml", "--out", tmp_path / "model", "--compile", "off")
    assert result.code == 0 and "note: --times uniform:0.7 is read as uniform:r_ne_t=0.7" in result.err
    description = load_model(tmp_path / "model" / "model.safetensors").description
    assert description is not None and description.times == "uniform:r_ne_t=0.7"
    assert description.specification["times"] == "uniform:r_ne_t=0.7"


def test_a_run_of_an_older_version_does_not_resume_with_the_other_meaning(cli: Run, tmp_path: Path) -> None:
    spec, out = tmp_path / "spec.yaml", tmp_path / "model"
    spec.write_text(f"{SPEC}times: uniform:r_ne_t=0.3\n")
    assert cli("train", spec, "--out", out, "--compile", "off").code == 0
    state = torch.load(out / "state.pt", weights_only=True)
    state["specification"]["times"] = "uniform:0.7"
    torch.save(state, out / "state.pt")
    assert cli("train", spec, "--out", out, "--compile", "off").code == 0
    spec.write_text(f"{SPEC}times: uniform:0.7\n")
    refused = cli("train", spec, "--out", out, "--compile", "off")
    assert refused.code == 2 and "times: uniform:r_ne_t=0.3 -> uniform:r_ne_t=0.7" in refused.err


def test_the_library_warns_where_nobody_listens() -> None:
    options = {"tables": ["sweep"], "samples": 64, "by_layer": False, "beta": [0.0, 1.0]}
    with pytest.warns(FutureWarning, match="Up to version 0.2"):
        measure(MLP(2, 4, 1), "gaussian:2,0,1", times="uniform:0.3", **options)  # type: ignore[arg-type]
    said: list[str] = []
    measure(MLP(2, 4, 1), "gaussian:2,0,1", times="uniform:r_eq_t=0.3", say=said.append, **options)  # type: ignore[arg-type]
    assert any("old spelling" in note for note in said)


def test_what_ships_spells_the_share_by_name() -> None:
    """The bundled checkpoint, the cards and the sweeps of the repository mean what they meant."""
    description = load_model(bundled()).description
    assert description is not None and description.times == "logit_normal:-0.4,1,0.75"
    times = {name: load_card(name).objective.times for name in shipped_cards()}
    assert times["splitmeanflow.yaml"] == "uniform:r_ne_t=0.3"
    assert times["mf-rae.yaml"] == "uniform:r_ne_t=0.25,shift=6.9282"
    assert not any(cell.notes for path in SWEEPS.glob("*.yaml") for cell in load_grid(path))
