"""--source, --coupling, --path and --prediction: defaults of the checkpoint, what is recorded, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mfdiag.flow.couplings import COUPLINGS
from mfdiag.flow.paths import PATHS
from mfdiag.flow.sources import SOURCES
from mfdiag.models.checkpoint import save_checkpoint
from mfdiag.models.description import Architecture, Description
from mfdiag.models.networks.mlp import MLP
from mfdiag.models.networks.registry import PREDICTIONS
from mfdiag.tables import read_table

Run = Callable[..., Any]
AXES = ("source", "coupling", "path", "prediction")
QUICK = ("--samples", "80", "--bins", "none", "--quiet")


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a small run's time, and is tested elsewhere."""
    monkeypatch.setattr("mfdiag.figures.save_figures", lambda frames, out: [])


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """A checkpoint that says it was trained otherwise than usual."""
    description = Description(
        architecture=Architecture(name="mlp", arguments={"dim": 2, "hidden": 8, "depth": 1}),
        source="mixture:3,0.5",
        coupling="minibatch_ot:4",
        path="trigonometric",
        prediction="v",
        times="uniform",
        data="mixture:2,3",
        step=7,
        seed=0,
    )
    save_checkpoint(tmp_path / "described.safetensors", MLP(2, hidden=8, depth=1), None, description)
    return tmp_path / "described.safetensors"


def subjects(out: Path, table: str = "sweep") -> list[dict[str, Any]]:
    return json.loads((out / "manifest.json").read_text())[table]["specification"]["subjects"]


def axes_of(record: dict[str, Any]) -> tuple[str, ...]:
    return tuple(record[name] for name in AXES)


def test_the_checkpoint_says_how_it_was_trained(cli: Run, described: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("sweep", described, checkpoint, *QUICK, "--out", out).code == 0
    one, other = subjects(out)
    assert axes_of(one) == ("mixture:3,0.5", "minibatch_ot:4", "trigonometric", "v")
    assert axes_of(other) == ("gaussian", "independent", "linear", "u")
    shown = cli("inspect", described).out
    assert all(value in shown for value in axes_of(one))


def test_options_stand_above_the_checkpoint(cli: Run, described: Path, tmp_path: Path) -> None:
    values = {}
    for name, options in {"own": (), "usual": ("--source", "gaussian", "--coupling", "independent")}.items():
        out = tmp_path / name
        assert cli("variance", described, *QUICK, *options, "--out", out).code == 0
        values[name] = read_table("variance", out)
    assert axes_of(subjects(tmp_path / "usual", "variance")[0]) == ("gaussian", "independent", "trigonometric", "v")
    assert "conditional_variance" in set(values["usual"]["quantity"])
    assert "conditional_variance" not in set(values["own"]["quantity"]), "no posterior under transport"


@pytest.mark.parametrize(
    "options",
    [("--source", "norm_aligned"), ("--coupling", "gibbs:4"), ("--path", "trigonometric"), ("--prediction", "x")],
)
def test_each_option_changes_the_numbers_and_resuming(
    options: tuple[str, str], cli: Run, checkpoint: Path, tmp_path: Path
) -> None:
    values = []
    for k, given in enumerate([(), options]):
        assert cli("sweep", checkpoint, *QUICK, *given, "--out", tmp_path / str(k)).code == 0
        found = read_table("sweep", tmp_path / str(k)).query("quantity == 'variance' and space == 'gradient'")
        values.append(found["value"].iloc[0])
    assert values[0] != values[1]
    result = cli("sweep", checkpoint, *QUICK, *options, "--out", tmp_path / "0", "--resume")
    assert result.code == 2 and f"other options ({options[0].removeprefix('--')})" in result.err


def test_resuming_keeps_what_the_manifest_says(cli: Run, described: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("sweep", described, *QUICK, "--out", out).code == 0
    assert cli("sweep", checkpoint, *QUICK, "--out", out, "--resume").code == 0
    assert [record["path"] for record in subjects(out)] == ["trigonometric", "linear"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--source gausian", "Did you mean 'gaussian'"),
        ("--coupling minibatch_it:4", "Did you mean 'minibatch_ot'"),
        ("--path lnear", "Did you mean 'linear'"),
        ("--prediction epsilon", "Did you mean 'eps'"),
        ("--source mixed:1,0", "expected 0 <= low <= high <= 1"),
        ("--coupling reflow:nowhere.pt", "nowhere.pt does not exist"),
        ("--coupling pairs:nowhere.npz", "No file at nowhere.npz"),
        ("--path nowhere.py:path", "nowhere.py does not exist"),
        ("--coupling gibbs:1 --proxy exact", "marginal velocity is known"),
    ],
)
def test_bad_options(options: str, expected: str, cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    result = cli("sweep", checkpoint, *QUICK, *options.split(), "--out", tmp_path / "out")
    assert result.code == 2 and expected in result.err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "names"),
    [("sources", SOURCES), ("couplings", COUPLINGS), ("paths", PATHS), ("predictions", PREDICTIONS)],
)
def test_list(kind: str, names: dict[str, str], cli: Run) -> None:
    result = cli("list", kind)
    assert result.code == 0 and [line.split()[0] for line in result.out.splitlines()] == list(names)
