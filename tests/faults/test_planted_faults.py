"""The plain loop trains what it says, each fault changes it, and the files read as the user believes them to be."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from cases import HELD_OUT, NETWORKS, TUNING, Case, train_case
from healthy import HEALTHY
from planted import FAULTS
from torch import nn
from torch.func import jvp
from training_loop import Recipe, draw, loss, train

from mfdiag.models.checkpoint import load_model
from mfdiag.models.networks.mlp import MLP


def _data(n: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    points = torch.randn(n, 2, generator=torch.Generator().manual_seed(5))
    return points, torch.zeros(n, dtype=torch.int64)


def _by_hand(network: nn.Module, recipe: Recipe, seed: int) -> nn.Module:
    """MeanFlow's loop for one model, written out without stacked weights."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.rate)
    for _ in range(recipe.steps):
        x0, x1, r, t, _ = draw(recipe, network, *_data(), generator)
        x, v = (1 - t)[:, None] * x0 + t[:, None] * x1, x1 - x0
        u, du = jvp(network, (x, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
        target = (v - (t - r)[:, None] * du).detach()
        optimizer.zero_grad()
        (u - target).square().sum(1).mean().backward()
        optimizer.step()
    return network


def test_stacked_models_train_as_single_ones() -> None:
    recipe = Recipe(steps=5, batch=16)
    networks, copies = ([], [])
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(MLP(2, 8, 2))
        copies.append(MLP(2, 8, 2))
        copies[-1].load_state_dict(networks[-1].state_dict())
    runs = train(recipe, networks, [_data(), _data()], [3, 4])
    for run, copy, seed in zip(runs, copies, (3, 4), strict=True):
        weights, _ = run.checkpoints[5]
        for name, value in _by_hand(copy, recipe, seed).state_dict().items():
            torch.testing.assert_close(weights[name], value, rtol=2e-4, atol=1e-6)


def test_faults_have_many_kinds_on_two_networks_and_four_data_sets() -> None:
    assert len({case.kind for case in FAULTS}) >= 24
    assert len(TUNING + HELD_OUT) >= 3 and not set(TUNING) & set(HELD_OUT)
    networks: dict[str, set[str]] = {}
    for case in FAULTS:
        networks.setdefault(case.kind, set()).update(case.networks)
    assert {kind for kind, names in networks.items() if names != {"mlp", "dit"}} == {"high_frequency_times"}
    assert all(case.expected and case.why for case in FAULTS)
    assert not any(case.expected for case in HEALTHY)
    names = Counter((case.name, network) for case in FAULTS + HEALTHY for network in case.networks)
    assert max(names.values()) == 1


def test_each_fault_changes_the_training() -> None:
    network = MLP(2, 8, 2, num_classes=4)
    weights = dict(network.named_parameters())
    batch = draw(Recipe(batch=16), network, *_data(), torch.Generator().manual_seed(1))

    def gradient(recipe: Recipe) -> torch.Tensor:
        value, _ = loss(recipe, network, weights, weights, batch)
        return torch.cat([part.flatten() for part in torch.autograd.grad(value, list(weights.values()))])

    plain = gradient(Recipe())
    for case in FAULTS:
        lines = {"call", "point", "velocity", "tangents", "residual", "guided", "data", "power"} & case.changes.keys()
        if lines:
            assert not torch.equal(gradient(Recipe(**{name: case.changes[name] for name in lines})), plain), case.name


def test_files_read_as_the_user_believes_them_to_be(tmp_path: Path) -> None:
    case = Case("brief", {"steps": 3}, save_at=(0.4,))
    for name, network in NETWORKS.items():
        (entry,) = train_case(replace(case, networks=(name,)), name, TUNING[:1], tmp_path)
        assert (tmp_path / entry["log"]).read_text().startswith("step,loss,grad_norm,mse\n0,")
        (earlier,) = entry["series"]
        assert load_model(tmp_path / earlier).step == 1
        loaded = load_model(tmp_path / entry["path"])
        assert loaded.description is not None and loaded.step == 3
        x = torch.randn(4, *network.shape)
        r, t = torch.zeros(4), torch.ones(4)
        assert loaded.module(x, r, t).shape == x.shape
