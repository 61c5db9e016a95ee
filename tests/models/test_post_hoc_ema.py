"""Post-hoc averages are those of the papers, and an average that was never updated is said to be none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from mfdiag.errors import InputError
from mfdiag.models.checkpoint import load_model
from mfdiag.models.inspection import inspect_checkpoint
from mfdiag.models.networks.mlp import MLP
from mfdiag.models.post_hoc_ema import combination, exponent_of_width

WIDTHS = (0.05, 0.28)
STEPS = 400


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "network.py").write_text(
        "from mfdiag.models.networks.mlp import MLP\n\ndef build(): return MLP(2, hidden=4, depth=1)\n"
    )
    return f"{tmp_path / 'network.py'}:build"


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return MLP(2, hidden=4, depth=1).state_dict()


@given(st.floats(0.0, 500.0))
def test_a_width_has_the_exponent_of_its_profile(exponent: float) -> None:
    tau = (np.arange(200_000) + 0.5) / 200_000
    profile = (exponent + 1) * tau**exponent
    mean = np.mean(profile * tau)
    width = float(np.sqrt(np.mean(profile * (tau - mean) ** 2)))
    assert exponent_of_width(width) == pytest.approx(exponent, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("width", [0.0, 0.3, -1.0, float("nan")])
def test_a_width_without_a_profile_is_refused(width: float) -> None:
    with pytest.raises(InputError, match=r"above 0 and at most 0\.289"):
        exponent_of_width(width)


@given(st.floats(0.03, 0.28), st.lists(st.tuples(st.floats(1, 50), st.floats(0, 30)), min_size=1, max_size=4))
def test_the_combination_is_the_least_squares_of_the_profiles(width: float, stored: list[tuple[float, float]]) -> None:
    """The slow twin: profiles on a fine grid, and numpy's least squares."""
    time, exponent = 50.0, exponent_of_width(width)
    tau = (np.arange(20_000) + 0.5) / 20_000 * time
    profiles = [np.where(tau <= t, (g + 1) * tau**g / t ** (g + 1), 0) for t, g in [*stored, (time, exponent)]]
    expected = np.linalg.lstsq(np.stack(profiles[:-1], 1), profiles[-1], rcond=None)
    residual = profiles[-1] - np.stack(profiles[:-1], 1) @ expected[0]
    _, error = combination([t for t, _ in stored], [g for _, g in stored], time, exponent)
    assert error == pytest.approx(np.linalg.norm(residual) / np.linalg.norm(profiles[-1]), abs=2e-2)


def averages_of(path: Callable[[float], float], width: float, steps: int) -> float:
    """The average of a weight along training by the papers' recursion."""
    gamma, average = exponent_of_width(width), 0.0
    for step in range(1, steps + 1):
        beta = (1 - 1 / step) ** (gamma + 1)
        average = beta * average + (1 - beta) * path(step)
    return average


def trajectory(step: float) -> float:
    return float(np.sin(step / 60) + step / 200)


def snapshot_state(value: float) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in weights().items()}


def write_snapshots(folder: Path) -> None:
    """The files of ema-pytorch's PostHocEMA, in float32."""
    folder.mkdir()
    for step in range(50, STEPS + 1, 50):
        for number, width in enumerate(WIDTHS):
            state = snapshot_state(averages_of(trajectory, width, step))
            counters = {"initted": torch.tensor(1.0), "step": torch.tensor(float(step))}
            torch.save(counters | {f"ema_model.{k}": v for k, v in state.items()}, folder / f"{number}.{step}.pt")


@pytest.mark.parametrize("width", [0.08, 0.1, 0.15, 0.2])
def test_snapshots_give_the_average_of_any_width(tmp_path: Path, factory: str, width: float) -> None:
    write_snapshots(tmp_path / "snapshots")
    loaded = load_model(tmp_path / "snapshots", model=factory, weights=f"ema:{width}:0.05,0.28")
    exact = averages_of(trajectory, width, STEPS)
    values = torch.cat([value.flatten() for value in loaded.module.state_dict().values()])
    assert values.allclose(torch.tensor(exact), atol=0.03) and "combined from 16 averages" in loaded.notes[0]


def test_a_stored_width_is_taken_as_it_is(tmp_path: Path, factory: str) -> None:
    write_snapshots(tmp_path / "snapshots")
    loaded = load_model(tmp_path / "snapshots", model=factory, weights="ema:0.28:0.05,0.28")
    assert loaded.module.state_dict()["layers.0.bias"][0] == torch.tensor(averages_of(trajectory, 0.28, STEPS))
    with pytest.raises(InputError, match=r"width of average 0, which .* does not record; .* ema:0\.28:0\.05,0\.28"):
        load_model(tmp_path / "snapshots", model=factory, weights="ema:0.28")


FILES: dict[str, Callable[[dict[str, Tensor], dict[str, Tensor]], Any]] = {
    "EDM2": lambda a, b: {"net": weights(), "ema": {"stds": [0.05, 0.1], "emas": [a, b]}, "state": {"cur_nimg": 3}},
    "ema-pytorch": lambda a, b: {
        "model": weights(),
        "ema": {
            f"ema_models.{number}.{name}": value
            for number, state in enumerate((a, b))
            for name, value in (
                {f"ema_model.{k}": v for k, v in state.items()} | {"initted": torch.tensor(True)}
            ).items()
        },
    },
    "named": lambda a, b: {"model": weights(), "ema_0.99": a, "ema_0.999": b},
}
PLACES = {
    "EDM2": ["ema.emas.0.050", "ema.emas.0.100"],
    "ema-pytorch": ["ema.ema_models.0", "ema.ema_models.1"],
    "named": ["ema_0.99", "ema_0.999"],
}


@pytest.mark.parametrize("kind", FILES)
def test_several_averages_are_listed_and_the_card_says_which(tmp_path: Path, factory: str, kind: str) -> None:
    states = [snapshot_state(1.0), snapshot_state(2.0)]
    path = tmp_path / "file.pt"
    torch.save(FILES[kind](*states), path)
    for place, state in zip(PLACES[kind], states, strict=True):
        loaded = load_model(path, model=factory, weights=place)
        assert all(torch.equal(value, state[name]) for name, value in loaded.module.state_dict().items())
    with pytest.raises(InputError, match=r"Expected weights 'ema'|one copy of MLP .* holds 2"):
        load_model(path, model=factory, weights="ema")
    inspection = inspect_checkpoint(path)
    assert any("has 2 averages" in note and PLACES[kind][1] in note for note in inspection.notes)
    proposal = inspection.proposal
    assert proposal is not None and proposal.averages == PLACES[kind][1:]
    assert f"# the file has several averages; those that weights.ema does not name: {PLACES[kind][1]}" in proposal.text
    (tmp_path / "my.yaml").write_text(proposal.text)
    loaded = load_model(path, model=str(tmp_path / "my.yaml"), weights="ema")
    assert loaded.module.state_dict()["network.layers.0.bias"][0] == 1


def test_widths_that_a_file_states_are_used(tmp_path: Path, factory: str) -> None:
    torch.save(FILES["EDM2"](snapshot_state(1.0), snapshot_state(2.0)), tmp_path / "file.pt")
    loaded = load_model(tmp_path / "file.pt", model=factory, weights="ema:0.1")
    assert loaded.module.state_dict()["layers.0.bias"][0] == 2 and "is stored" in loaded.notes[0]
    between = load_model(tmp_path / "file.pt", model=factory, weights="ema:0.075")
    assert 1 < between.module.state_dict()["layers.0.bias"][0] < 2.2 and "combined from 2" in between.notes[0]
    with pytest.raises(InputError, match=r"differs from it by \d+% .* a stored width \(0\.05, 0\.1\), or the folder"):
        load_model(tmp_path / "file.pt", model=factory, weights="ema:0.25")
    torch.save({"model": weights(), "ema": snapshot_state(1.0)}, tmp_path / "plain.pt")
    with pytest.raises(InputError, match="Expected averages of several widths"):
        load_model(tmp_path / "plain.pt", model=factory, weights="ema:0.1")


def still(kind: str, folder: Path, updates: int) -> Path:
    """A file with an average that was updated so many times."""
    raw, ema = weights(), snapshot_state(1.0)
    path = folder / "file.pt"
    count = torch.tensor(updates)
    below = {f"ema_model.{name}": value for name, value in ema.items()}
    match kind:
        case "AveragedModel":
            network = MLP(2, hidden=4, depth=1)
            averaged = AveragedModel(network)
            for _ in range(updates):
                averaged.update_parameters(network)
            torch.save({"model": raw, "ema": averaged.state_dict()}, path)
        case "ema-pytorch":
            torch.save({"model": raw, "ema": below | {"initted": torch.tensor(updates > 0), "step": count}}, path)
        case "latent diffusion":
            state = {f"model.{k}": v for k, v in raw.items()} | {f"model_ema.{k}": v for k, v in ema.items()}
            torch.save({"state_dict": state | {"model_ema.num_updates": count}}, path)
        case "torch-ema":
            torch.save({"model": raw, "ema": {"num_updates": updates, "shadow_params": [*ema.values()]}}, path)
        case "WeightAveraging":
            state = {"state_dict": ema, "current_model_state": raw, "averaging_state": {"n_averaged": count}}
            torch.save(state, path)
        case "safetensors":
            path = path.with_suffix(".safetensors")
            save_file(
                {f"net.{k}": v for k, v in raw.items()}
                | {f"net_ema.{k}": v for k, v in ema.items()}
                | {"net_ema.n_averaged": count},
                path,
            )
        case "diffusers":
            path = folder / "checkpoint"
            for name, state in (("unet", raw), ("unet_ema", ema)):
                (path / name).mkdir(parents=True)
                save_file(state, path / name / "diffusion_pytorch_model.safetensors")
            (path / "unet_ema" / "config.json").write_text(json.dumps({"optimization_step": updates}))
    return path


KINDS = (
    *("AveragedModel", "ema-pytorch", "latent diffusion", "torch-ema", "WeightAveraging", "safetensors", "diffusers"),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("updates", [0, 3])
def test_an_average_that_was_never_updated_is_said(tmp_path: Path, factory: str, kind: str, updates: int) -> None:
    path = still(kind, tmp_path, updates)
    assert any("never updated" in note for note in inspect_checkpoint(path).notes) == (updates == 0)
    loaded = load_model(path, model=factory)
    assert loaded.has_weights("ema") == (updates > 0)
    assert any("never updated" in note for note in loaded.notes) == (updates == 0)
    average = load_model(path, model=factory, weights="ema")
    assert any("never updated" in note for note in average.notes) == (updates == 0)
