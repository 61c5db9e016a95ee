"""Built-in networks: shapes, labels, usable gradients, forward-mode derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mfdiag.errors import InputError
from mfdiag.models.networks.decoupled import DecoupledDiT
from mfdiag.models.networks.dit import DiT
from mfdiag.models.networks.mlp import MLP
from mfdiag.models.networks.unet import UNet, UNet1d

NETWORKS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda classes: MLP(2, hidden=16, num_classes=classes), (2,)),
    "dit": (lambda classes: DiT(3, size=4, width=16, depth=2, heads=2, num_classes=classes), (3, 4, 4)),
    "decoupled_dit": (
        lambda classes: DecoupledDiT(3, size=4, width=16, depth=3, heads=2, num_classes=classes),
        (3, 4, 4),
    ),
    "unet": (lambda classes: UNet(2, width=16, num_classes=classes), (2, 5, 4)),
    "unet1d": (lambda classes: UNet1d(2, width=16, num_classes=classes), (2, 9)),
}


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest) -> tuple[Callable[[int], nn.Module], torch.Tensor, torch.Tensor, torch.Tensor]:
    build, shape = NETWORKS[request.param]
    torch.manual_seed(0)
    return build, torch.randn(5, *shape), torch.rand(5) / 2, 0.5 + torch.rand(5) / 2


def test_shape_and_dependence_on_every_input(case: tuple) -> None:
    build, x, r, t = case
    model = build(0)
    u = model(x, r, t)
    assert u.shape == x.shape
    for changed in ((x + 0.1, r, t), (x, r / 2, t), (x, r, t / 2)):
        assert not torch.allclose(model(*changed), u)
    assert torch.equal(model(x, r, t, torch.arange(5)), u), "labels are ignored without classes"
    torch.testing.assert_close(model(x[:2], r[:2], t[:2]), u[:2])


def test_null_label_stands_for_no_label(case: tuple) -> None:
    build, x, r, t = case
    model = build(3)
    null = model(x, r, t)
    assert torch.equal(null, model(x, r, t, torch.full((5,), 3)))
    assert not torch.allclose(null, model(x, r, t, torch.zeros(5, dtype=torch.int64)))


def test_every_parameter_of_a_fresh_network_has_a_gradient(case: tuple) -> None:
    build, x, r, t = case
    model = build(3)
    model(x, r, t).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_forward_mode_derivative_matches_a_difference(case: tuple) -> None:
    build, x, r, t = (value.double() if isinstance(value, torch.Tensor) else value for value in case)
    model = build(0).double()
    tangent = torch.randn_like(x)
    with sdpa_kernel(SDPBackend.MATH):
        _, derivative = torch.func.jvp(model, (x, r, t), (tangent, torch.zeros_like(r), torch.ones_like(t)))
    h = 1e-6
    difference = (model(x + h * tangent, r, t + h) - model(x - h * tangent, r, t - h)) / (2 * h)
    torch.testing.assert_close(derivative, difference, rtol=1e-6, atol=1e-8)


def test_default_dit_has_16_tokens_and_four_million_parameters() -> None:
    model = DiT()
    assert model.pos_embed.shape == (1, 16, 192)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(4.2e6, rel=0.02)
    assert model(torch.randn(1, 4, 8, 8), torch.zeros(1), torch.ones(1)).shape == (1, 4, 8, 8)


def test_patches_are_local() -> None:
    """Without attention's mixing each patch of the output sees its own patch of the input alone."""
    model = DiT(1, size=4, width=8, depth=1, heads=1)
    model.blocks = nn.ModuleList()
    x = torch.randn(1, 1, 4, 4)
    moved = x.clone()
    moved[..., :2, 2:] += 1
    time = torch.full((1,), 0.5)
    changed = (model(moved, time, time) - model(x, time, time)).abs() > 0
    assert changed[0, 0, :2, 2:].all() and changed.sum() == 4


@pytest.mark.parametrize("build", [lambda: MLP(0), lambda: DiT(size=5, patch=2), lambda: DiT(width=10, heads=3)])
def test_impossible_sizes_are_refused(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(InputError, match="correct the model's arguments"):
        build()
