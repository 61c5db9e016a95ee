"""`mfdiag identify`, and the check of every measuring command, as a user meets them."""

from __future__ import annotations

import json
import runpy
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Run

import mfdiag
from mfdiag.flow.data.datasets import load_data
from mfdiag.models.checkpoint import bundled, load_model
from mfdiag.tables.store import read_table

# the same weights in a convention that the names of the arguments do not tell: point first, times * 1000, data at 1
NETWORK = """
import torch
from torch import nn
from mfdiag.models.networks.mlp import MLP

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = MLP(2)

    def forward(self, x, p, q):
        t, r = 1 - p / 1000, 1 - q / 1000
        return -self.mlp(x, r, t)

def build():
    return Net()
"""
MINUS = """
from torch import nn
from mfdiag.models.networks.mlp import MLP

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = MLP(2)

    def forward(self, x, r, t):
        return -self.mlp(x, r, t)

def build():
    return Net()
"""
ARGUMENTS = ("--samples", 64, "--beta", "0,1", "--times", "logit_normal:-0.4,1,0.75")


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with network, weights (raw and averaged) and data on another scale."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    loaded = load_model(bundled())
    sets = {key: loaded.with_weights(key).state_dict() for key in ("raw", "ema")}
    state = {key: {f"mlp.{name}": value for name, value in tensors.items()} for key, tensors in sets.items()}
    torch.save({"model": state["raw"], "ema": state["ema"], "step": 5}, tmp_path / "net.pt")
    points = np.asarray(load_data("eight_gaussians").points)[:4000]  # type: ignore[attr-defined]
    np.save(tmp_path / "points.npy", points.astype(np.float32))
    np.save(tmp_path / "stored.npy", (10 * points).astype(np.float32))
    return tmp_path


def arguments(*more: object) -> tuple[object, ...]:
    return ("net.pt", "--model", "net.py:build", "--data", "stored.npy", *more)


def test_identify_writes_the_card_that_measures_as_the_original(cli: Run, foreign: Path) -> None:
    result = cli("identify", *arguments("--samples", 96, "--times", "logit_normal:-0.4,1,0.75", "--out", "id"))
    assert result.code == 1
    assert "The declared convention is refuted" in result.err
    table = read_table("identify", foreign / "id")
    best = table[(table["verdict"] == "best") & (table["quantity"] == "misfit")].iloc[0]
    assert (best["call"], best["direction"], best["time_scale"]) == ("t,r", "D1", 1000)
    assert best["data_factor"] == pytest.approx(0.1)
    declared = table[(table["reading"] == "as declared") & (table["quantity"] == "misfit")].iloc[0]
    assert best["value"] < declared["value"] / 2
    card = foreign / "id" / "net.card.yaml"

    again = cli("identify", "net.pt", "--model", card, "--data", "stored.npy", "--samples", 96, "--out", "again")
    assert again.code == 0
    assert "is refuted" not in again.err
    assert cli("sweep", "net.pt", "--model", card, "--data", "stored.npy", *ARGUMENTS, "--out", "a").code == 0
    assert cli("sweep", bundled(), "--data", "points.npy", *ARGUMENTS, "--out", "b").code == 0
    ours, original = read_table("sweep", foreign / "a"), read_table("sweep", foreign / "b")
    values = [frame[frame["quantity"] == "variance"]["value"].to_numpy(float) for frame in (ours, original)]
    assert values[0] == pytest.approx(values[1], rel=1e-3)
    assert "doubts" not in json.loads((foreign / "a" / "manifest.json").read_text())["sweep"]["specification"]


def test_a_measuring_command_warns_in_terminal_manifest_and_report(cli: Run, foreign: Path) -> None:
    result = cli("sweep", *arguments(*ARGUMENTS, "--out", "out"))
    assert result.code == 0
    assert "WARNING: Every number may be wrong: net.pt" in result.err
    (doubt,) = json.loads((foreign / "out" / "manifest.json").read_text())["sweep"]["specification"]["doubts"]
    assert "convention.direction D1" in doubt["reading"]
    assert cli("report", "out").code == 0
    page = (foreign / "out" / "report.html").read_text()
    assert page.index("Every number may be wrong") < page.index("<h2>")


def test_strict_refuses_what_is_read_in_a_wrong_convention(cli: Run, foreign: Path) -> None:
    result = cli("sweep", *arguments(*ARGUMENTS, "--strict", "--out", "out"))
    assert result.code == 2
    assert "--strict" in result.err
    assert not (foreign / "out" / "sweep.parquet").exists()


def test_quality_warns_too_and_strict_refuses(cli: Run, foreign: Path) -> None:
    sampled = ("--nfe", 1, "--samples", 64, "--metric", "energy_distance")
    result = cli("quality", *arguments(*sampled, "--out", "out"))
    assert result.code == 0
    assert "WARNING: Every number may be wrong: net.pt" in result.err
    assert json.loads((foreign / "out" / "manifest.json").read_text())["quality"]["specification"]["doubts"]
    assert cli("quality", *arguments(*sampled, "--strict", "--out", "strict")).code == 2


def test_measure_warns_the_caller(foreign: Path) -> None:
    class Swapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = load_model(bundled()).with_weights("raw")

        def forward(self, x: torch.Tensor, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
            return -self.mlp(x, 1 - q, 1 - p)

    points = np.load(foreign / "points.npy")
    options = {"samples": 64, "beta": (0.0,), "times": "logit_normal:-0.4,1,0.75"}
    with pytest.warns(UserWarning, match=r"Every number may be wrong.* convention\.direction D1") as warned:
        mfdiag.measure(Swapped(), points, tables=("variance",), **options)
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        mfdiag.measure(load_model(bundled()).with_weights("raw"), points, tables=("variance",), **options)


def test_identify_with_a_card_says_when_no_convention_explains_the_file(cli: Run, foreign: Path) -> None:
    torch.manual_seed(0)
    state = {name: 0.3 * torch.randn_like(value) for name, value in torch.load("net.pt")["model"].items()}
    torch.save({"model": state}, "untrained.pt")
    Path("card.yaml").write_text(
        "network: {factory: 'net.py:build'}\nweights: {raw: model}\n"
        "call: {arguments: [x, t, r, none]}\nconvention: {direction: D1}\n"
    )
    for model in ("net.py:build", "card.yaml"):
        out = f"id-{Path(model).stem}"
        result = cli(
            "identify", "untrained.pt", "--model", model, "--data", "points.npy", "--samples", 64, "--out", out
        )
        assert result.code == 0, result.err
        assert "No convention explains this file" in result.err
        assert "untrained" in result.err
        assert not list((foreign / out).glob("*.card.yaml"))


def test_identify_says_when_no_convention_explains_the_file(
    cli: Run, save: Callable[..., Path], tmp_path: Path
) -> None:
    result = cli("identify", save(), "--samples", 64, "--data", "gaussian:2,0,1", "--out", tmp_path / "id")
    assert result.code == 0
    assert "No convention explains this file" in result.err
    assert not list((tmp_path / "id").glob("*.card.yaml"))


def test_an_exported_program_has_no_card_but_the_remedy_that_is_named(cli: Run, foreign: Path) -> None:
    """A program of (x, r, t) that predicts minus u, so that a card is wanted."""
    (foreign / "minus.py").write_text(MINUS)
    loaded = load_model(bundled())
    inner = loaded.with_weights("raw").state_dict()
    network = runpy.run_path(str(foreign / "minus.py"))["build"]()
    network.load_state_dict({f"mlp.{name}": value for name, value in inner.items()})
    batch = torch.export.Dim("batch", min=1, max=4096)
    inputs = (torch.ones(3, 2), torch.zeros(3), torch.ones(3))
    program = torch.export.export(network.eval(), inputs, dynamic_shapes=({0: batch}, {0: batch}, {0: batch}))
    torch.export.save(program, foreign / "net.pt2")
    options = ("--data", "points.npy", "--samples", 64, "--times", "logit_normal:-0.4,1,0.75")
    result = cli("identify", "net.pt2", *options, "--out", "id")
    assert result.code == 1 and "output.sign -1" in result.err
    assert "No card is written: the file holds its network as a program, which a card cannot build" in result.err
    assert not [*(foreign / "id").glob("*.card.yaml")]
    # the first remedy of the note
    again = cli("identify", "net.pt2", "--model", "minus.py:build", *options, "--out", "again")
    assert again.code == 1 and "the card of the best convention" in again.err
    card = foreign / "again" / "net.card.yaml"
    corrected = cli("identify", "net.pt2", "--model", card, *options, "--out", "corrected")
    assert corrected.code == 0 and "The declared convention fits" in corrected.err
