"""Checkpoints of other projects, by the model cards that ship: stand-ins for their networks in their own layouts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import stand_ins
import torch
import yaml
from command_line import Run
from helpers import rows
from stand_ins import CLASSES, CONDITIONS, SHAPE, STAND_INS

from mfdiag.flow.conditions import Conditions
from mfdiag.flow.paths import LINEAR, parse_path
from mfdiag.models.cards.card_files import load_card, shipped_cards
from mfdiag.models.checkpoint import load_model
from mfdiag.models.prediction import as_average_velocity
from mfdiag.models.teacher import load_teacher
from mfdiag.tables import read_table

Made = Callable[[str], tuple[Path, Path]]
OTHERS = ["coefficient", "sweep", "compare"]


@pytest.fixture(autouse=True)
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures know nothing of cards."""
    monkeypatch.setattr("mfdiag.figures.save_figures", lambda frames, out: [])


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Writes a stand-in's checkpoint and an own card that extends the shipped one: made(name) -> both."""

    def make(name: str) -> tuple[Path, Path]:
        stand_in = STAND_INS[name]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            network = stand_in.network()
        checkpoint, card = tmp_path / f"{name}.pt", tmp_path / f"{name}-own.yaml"
        torch.save(stand_in.saved(network.state_dict()), checkpoint)
        own = {
            "extends": f"{name}.yaml",
            "network": {"factory": f"{stand_ins.__file__}:{stand_in.network.__name__}"},
            "data": {"shape": list(SHAPE), **stand_in.statistics},
            "weights": stand_in.weights,
        }
        if load_card(f"{name}.yaml").output.channels is not None:
            own["output"] = {"channels": SHAPE[0]}
        told = load_card(f"{name}.yaml").conditioning
        if told.kind != "none":
            own["conditioning"] = {"classes": CLASSES} | ({} if told.null is None else {"null": CLASSES})
        card.write_text(yaml.safe_dump(own))
        return checkpoint, card

    return make


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((40, *SHAPE)), y=np.arange(40) % CLASSES)
    return tmp_path / "data.npz"


def test_every_shipped_card_has_a_stand_in() -> None:
    assert {f"{name}.yaml" for name in STAND_INS} == shipped_cards().keys()


@pytest.mark.parametrize("name", STAND_INS)
def test_one_step_is_the_projects_own(name: str, made: Made) -> None:
    """x_0 = x_1 - u(x_1, 0, 1), for each set of weights in the file."""
    checkpoint, own = made(name)
    card = load_card(str(own))
    x, y = torch.randn(4, *SHAPE), torch.arange(4) % CLASSES
    arrays = {array: torch.randn(4, *shape) for array, shape in CONDITIONS.get(name, {}).items()}
    zero, one = torch.zeros(4), torch.ones(4)
    for weights in ("raw", "ema"):
        loaded = (
            load_model(checkpoint, model=str(own), weights=weights)
            if getattr(card.weights, weights) is not None
            else None
        )
        if loaded is None:
            continue
        model = as_average_velocity(loaded.module, card.prediction, parse_path(card.convention.path))
        with torch.no_grad():
            condition = Conditions(None, arrays) if arrays else y if card.conditioning.classes else None
            expected = STAND_INS[name].step(loaded.module.network, x, arrays or y)
            torch.testing.assert_close(x - model(x, zero, one, condition), expected)


_NOT_REACHED = {  # name of the card: parameters of its stand-in without a gradient, and words of the card that say why
    "haidog-meanflow": ({"v_head.weight", "v_head.bias"}, "velocity_head"),
    "re-meanflow": ({"unet.emb_noise.weight"}, "absent: [unet.emb_noise.weight]"),
}


@pytest.mark.parametrize("name", STAND_INS)
def test_the_gradient_reaches_every_parameter(name: str, made: Made) -> None:
    """That of what the card calls and reads: every entry, of every class and the null label."""
    checkpoint, own = made(name)
    card = load_card(str(own))
    loaded = load_model(checkpoint, model=str(own)).module
    model = as_average_velocity(loaded, card.prediction, parse_path(card.convention.path)).requires_grad_()
    n = 12
    x, r, t = torch.randn(n, *SHAPE), torch.linspace(0.05, 0.4, n), torch.linspace(0.5, 0.95, n)
    y = torch.arange(n) % (CLASSES + (card.conditioning.null is not None))
    arrays = {array: torch.randn(n, *shape) for array, shape in CONDITIONS.get(name, {}).items()}
    condition = Conditions(None, arrays) if arrays else y if card.conditioning.classes else None
    (model(x, r, t, condition) * torch.randn_like(x)).sum().backward()
    parameters = dict(model.network.named_parameters())  # type: ignore[union-attr, operator]
    missing = {p for p, v in parameters.items() if v.grad is None or not v.grad.reshape(len(v), -1).any(1).all()}
    expected, words = _NOT_REACHED.get(name, (set(), ""))
    assert missing == expected and words in (shipped_cards()[f"{name}.yaml"].read_text(encoding="utf-8"))
    assert len(parameters) >= 4


def test_what_the_card_says_becomes_the_default_and_is_said(made: Made, data: Path, tmp_path: Path, cli: Run) -> None:
    checkpoint, own = made("zhuyu-meanflow")
    card = load_card("zhuyu-meanflow.yaml")
    out = tmp_path / "out"
    told = cli("variance", checkpoint, "--model", own, "--data", data, "--samples", 48, "--out", out)
    assert (
        f"as {own} says the model was trained: " in told.err and f"--weighting {card.objective.weighting}" in told.err
    )
    assert f"{own.name} builds the network with {stand_ins.__file__}:Between, whose code is run." in told.err
    frame = read_table("variance", out)
    assert set(frame["weighting"]) == {card.objective.weighting} and set(frame["times"]) == {"logit_normal"}
    kept = json.loads((out / "manifest.json").read_text())["variance"]["specification"]["card"]
    assert kept == load_card(str(own)).model_dump(mode="json")
    given = ["--weighting", "none", "--times", "uniform", "--estimator", "ema_tangent", "--overwrite"]
    told = cli("variance", checkpoint, "--model", own, "--data", data, "--samples", 48, "--out", out, *given)
    frame = read_table("variance", out)
    assert set(frame["weighting"]) == {"none"} and set(frame["times"]) == {"uniform"}
    assert set(frame["estimator"].dropna()) == {"ema_tangent"} and "--weighting" not in told.err


def test_a_teacher_with_a_card_of_its_own(made: Made, data: Path, tmp_path: Path, cli: Run) -> None:
    """A network from noise to data without r teaches one from data to noise; its proxy is its own velocity."""
    (student, own), (teacher, other) = made("zhuyu-meanflow-cifar10"), made("torchcfm")
    proxy = f"teacher={teacher}@{other}"
    told = cli(
        "sweep", student, "--model", own, "--data", data, "--samples", 48, "--proxy", proxy, "--out", tmp_path / "out"
    )
    assert told.code == 0, told.err
    assert set(read_table("sweep", tmp_path / "out")["proxy"]) == {proxy}
    x, t = torch.randn(5, *SHAPE), torch.rand(5)
    guide = load_teacher(f"{teacher}@{other}", str(own))
    network = load_model(teacher, model=str(other)).module.network
    with torch.no_grad():
        torch.testing.assert_close(guide(x, t / 2, t, None), -network(1 - t, x))


def test_a_teacher_of_the_path_of_ddpm_for_a_network_of_the_linear_one(
    made: Made, data: Path, tmp_path: Path, cli: Run
) -> None:
    """Its noise at the point of DDPM's schedule with the same signal-to-noise ratio, as data and velocity by hand."""
    (student, own), (teacher, other) = made("zhuyu-meanflow-cifar10"), made("dit")
    proxy, out = f"teacher={teacher}@{other}", tmp_path / "out"
    told = cli("sweep", student, "--model", own, "--data", data, "--samples", 48, "--proxy", proxy, "--out", out)
    assert told.code == 0, told.err
    assert "was trained on the path ddpm" in told.err and "covers t from 0.009901 to 0.993687" in told.err
    assert set(read_table("sweep", out)["proxy"]) == {proxy}
    steps = torch.arange(1000, dtype=torch.float64)
    abar = (1 - (1e-4 + steps * (0.02 - 1e-4) / 999)).cumprod(0)
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    step = torch.tensor([40, 300, 700, 950])
    t = (sigma / (alpha + sigma))[step].float()  # of the linear path, where x_t is the teacher's over alpha + sigma
    a, s = (values[step].float().view(-1, 1, 1, 1) for values in (alpha, sigma))
    x, y = torch.randn(4, *SHAPE), torch.arange(4) % CLASSES
    network = load_model(teacher, model=str(other)).module.network
    with torch.no_grad():
        noise = network((a + s) * x, step.float(), y)[:, : SHAPE[0]]
        expected = noise - ((a + s) * x - s * noise) / a
        found = load_teacher(f"{teacher}@{other}", str(own), path=LINEAR)(x, t, t, y)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_teacher_that_describes_itself_takes_no_card_of_the_students(made: Made, checkpoint: Path) -> None:
    _, own = made("zhuyu-meanflow-cifar10")
    x, t = torch.randn(5, 2), torch.rand(5)
    with torch.no_grad():
        found = load_teacher(str(checkpoint), str(own))(x, t, t, None)
        torch.testing.assert_close(found, load_model(checkpoint).module(x, t, t))


def test_an_estimator_that_a_table_cannot_measure_is_left_out(made: Made, data: Path, tmp_path: Path, cli: Run) -> None:
    checkpoint, own = made("soflow")
    options = ["--data", data, "--samples", 8, "--bins", "none", "--out", tmp_path / "out"]
    told = cli("variance", checkpoint, "--model", own, *options)
    assert told.code == 0 and "soflow:0.002,0.857142857142857,1, is left out: it has a loss of its own" in told.err, (
        told.err
    )
    assert set(read_table("variance", tmp_path / "out")["estimator"].dropna()) == {"meanflow", "ema_tangent"}
    told = cli("variance", checkpoint, "--model", own, "--estimator", "soflow", *options, "--overwrite")
    assert told.code == 2 and "only `mfdiag compare` measures" in told.err
    told = cli("compare", checkpoint, "--model", own, *options)
    assert told.code == 0 and "is left out: it has a loss" not in told.err, told.err


def test_a_network_trained_from_the_data_end_draws_no_samples(made: Made, data: Path, tmp_path: Path, cli: Run) -> None:
    checkpoint, own = made("modular-meanflow")
    options = ["--data", data, "--samples", 48, "--out", tmp_path / "out"]
    told = cli("quality", checkpoint, "--model", own, "--metric", "energy_distance", "--nfe", "1", *options)
    assert told.code == 2 and "its steps lead from data to noise" in told.err, told.err
    told = cli("sweep", checkpoint, "--model", own, "--proxy", f"teacher={checkpoint}@{own}", *options)
    assert told.code == 2 and "velocity has data there" in told.err, told.err


def test_quality_takes_a_card(made: Made, data: Path, tmp_path: Path, cli: Run) -> None:
    checkpoint, own = made("haidog-meanflow-2025")
    options = ["--metric", "energy_distance", "--nfe", "1", "--samples", 64, "--out", tmp_path / "out"]
    told = cli("quality", checkpoint, "--model", own, "--data", data, "--weights", "raw", *options)
    assert told.code == 0 and len(read_table("quality", tmp_path / "out")), told.err


def test_list_cards(cli: Run) -> None:
    told = cli("list", "cards")
    assert told.code == 0 and len(told.out.splitlines()) == len(STAND_INS)
    code = "import sys; sys.argv = ['mfdiag', 'list', 'cards']; from mfdiag.cli.app import app; "
    code += "app(standalone_mode=False); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


OWN_NETWORK = """
from stand_ins import Raw

class Strict(Raw):
    def __init__(self):
        super().__init__()

class Narrow(Strict):
    def forward(self, x, r, t):
        return super().forward(x, r, t)[:, :1]
"""

BAD = {
    "network: {factory: no_such.models:Net}": "but there is no module no_such. Install it",
    "network: {arguments: {depth: 3}, factory: FACTORY}": "when called with depth, but it raised TypeError",
    "output: {part: 3}": "a tensor as part 3 of the output of Strict, but the output is one Tensor",
    "network: {factory: own_network.py:Narrow}": "must return samples of shape (2, 3, 3), but it",
    "call: {arguments: [x, r, t, y]}\nconditioning: {kind: index, classes: 2}": "for 2 classes, but",
    "convention: {direction: D1}\noutput: {prediction: denoised}": "which have no direction D1",
    "data: {shape: [3, 32, 32]}": "says that samples have the shape [3, 32, 32], but",
    "weights: {raw: student}": "Expected weights 'raw' at 'student'",
    "weights: {strip: [x_embedder]}": "Strict, but they do not (2 missing",
    "objective: {estimator: meanflows}": "own.yaml, line 2, objective.estimator: Unknown estimator 'meanflows'.",
}


@pytest.mark.parametrize("text", BAD)
def test_one_sentence_for_every_mistake(text: str, data: Path, tmp_path: Path, cli: Run) -> None:
    code = tmp_path / "own_network.py"
    code.write_text(OWN_NETWORK)
    factory = "network: {factory: own_network.py:Strict}\n"
    own = tmp_path / "own.yaml"
    own.write_text(("" if "network:" in text else factory) + text.replace("FACTORY", "own_network.py:Strict"))
    torch.save(stand_ins.Raw().state_dict(), tmp_path / "raw.pt")
    told = cli(
        "variance", tmp_path / "raw.pt", "--model", own, "--data", data, "--samples", 8, "--out", tmp_path / "out"
    )
    (line,) = [line for line in told.err.splitlines() if line.startswith("mfdiag: ")]
    assert told.code == 2 and BAD[text] in line and line.endswith("."), told.err


def test_data_without_labels(made: Made, tmp_path: Path, cli: Run) -> None:
    np.save(tmp_path / "bare.npy", np.random.default_rng(0).standard_normal((40, *SHAPE)))
    options = ["--data", tmp_path / "bare.npy", "--samples", 8, "--out", tmp_path / "out"]
    checkpoint, own = made("splitmeanflow")
    told = cli("variance", checkpoint, "--model", own, *options)
    assert told.code == 2 and "gives no null label" in told.err
    checkpoint, own = made("haidog-meanflow-2025")
    told = cli("sweep", checkpoint, "--model", own, "--beta", "0,1", "--guidance", "none", *options)
    assert told.code == 0 and "has no labels: the network receives its null label" in told.err, told.err


@pytest.mark.parametrize("name", STAND_INS)
def test_measured_by_the_commands(name: str, made: Made, data: Path, tmp_path: Path, cli: Run) -> None:
    checkpoint, own = made(name)
    if name in CONDITIONS:
        rng = np.random.default_rng(1)
        arrays = {array: rng.standard_normal((40, *shape)) for array, shape in CONDITIONS[name].items()}
        data = tmp_path / "conditioned.npz"
        np.savez(data, x=rng.standard_normal((40, *SHAPE)), **arrays)
    # each by `variance`, and all of the others by one of three commands
    for command in ("variance", OTHERS[list(STAND_INS).index(name) % 3]):
        options = ["--data", data, "--samples", 48, "--by", "layer", "--bins", "none", "--out", tmp_path / "out"]
        options += ["--beta", "0,1"] if command == "sweep" else []
        done = cli(command, checkpoint, "--model", own, *options)
        assert done.code == 0, done.err
        frame = read_table(command, tmp_path / "out")
        assert len(frame)
        if command == "variance":
            layers = set(rows(frame, quantity="variance")["layer"])
            names = {layer.removeprefix("model.") for layer in layers}  # the network of mp1 is an attribute
            assert {"x_embedder", "final_layer"} < names and "pos_embed" not in names
            assert ("obs_encoder.mlp" in layers) == (name == "mp1")
            assert (rows(frame, quantity="variance", layer="all")["value"] > 0).all()
