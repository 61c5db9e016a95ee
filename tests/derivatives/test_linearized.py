"""Linearized layers: the same values, J^T w and J v as torch's own, and not used where a network forbids them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jvp

import mfdiag
from mfdiag.derivatives.attention import twice_differentiable
from mfdiag.derivatives.linearized import Linearized
from mfdiag.gradients.engine import prepare_engine
from mfdiag.gradients.fast_engine import FastEngine

LAYERS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": nn.SiLU(),
    "silu in place": lambda x: F.silu(x.clone(), inplace=True),
    "softplus": lambda x: F.softplus(x, beta=2),
    "mish": F.mish,
    "tanh": torch.tanh,
    "tanh method": lambda x: x.tanh(),
    "sigmoid": torch.sigmoid,
    "layer norm": lambda x: F.layer_norm(x, (5,)),
    "layer norm of two axes": nn.LayerNorm((3, 5), dtype=torch.float64),
    "layer norm with affine part": lambda x: F.layer_norm(x, (5,), torch.arange(5.0).double(), bias=x[0, 0], eps=0.1),
    "linear": lambda x: F.linear(x, torch.arange(20.0).double().view(4, 5).sin(), torch.ones(4).double()),
    "linear without bias": nn.Linear(5, 2, bias=False, dtype=torch.float64).requires_grad_(False),
    "attention": lambda x: F.scaled_dot_product_attention(x.sin(), x.cos()[:, :2], x[:, :2] ** 2, scale=0.7),
    "attention of heads": lambda x: F.scaled_dot_product_attention(*(x.unflatten(2, (1, 5)).transpose(1, 2),) * 3),
    "attention with a mask": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "a chain": lambda x: F.gelu(F.layer_norm(torch.tanh(x @ x.transpose(1, 2) @ x), (5,))),
}


@pytest.mark.parametrize("name", LAYERS)
def test_values_and_both_derivatives_are_torchs(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, v, w = torch.randn(3, 4, 3, 5, generator=generator, dtype=torch.float64)
    layer = LAYERS[name]
    at = x.clone().requires_grad_()
    with twice_differentiable(), Linearized():
        y = layer(at)
    w = w.flatten()[: y.numel()].view(y.shape)
    zero = torch.zeros_like(y, requires_grad=True)
    (pulled,) = torch.autograd.grad(y, at, zero, create_graph=True)
    (along,) = torch.autograd.grad(pulled, zero, v, retain_graph=True)
    (back,) = torch.autograd.grad(y, at, w)
    plain = x.clone().requires_grad_()
    with twice_differentiable():
        value, truth = jvp(layer, (x,), (v,))
        (back_truth,) = torch.autograd.grad(layer(plain), plain, w)
    torch.testing.assert_close(y, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(along, truth, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(back, back_truth, rtol=1e-10, atol=1e-12)


class _Overwrites(nn.Module):
    """Changes a normalised activation in place, which torch's own layer_norm allows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        hidden = F.layer_norm(self.inner(torch.cat([x, r[:, None], t[:, None]], 1)), (8,))
        hidden += 1
        return self.outer(hidden)


class _Conservative(nn.Module):
    """The gradient of an energy, taken within, beside a layer's output: gradients are on whatever the caller wants."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1, bias=False))
        self.beside = nn.Linear(2, 2)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        with torch.enable_grad():
            at = x if x.requires_grad else x.detach().requires_grad_()
            energy = self.energy(torch.cat([at, r[:, None], t[:, None]], 1))
            return self.beside(at) - torch.autograd.grad(energy.sum(), at, create_graph=True)[0]


def test_a_network_that_differentiates_itself_is_measured_without_them() -> None:
    torch.manual_seed(0)
    module = _Conservative()
    frames = [
        mfdiag.measure(module, "two_moons", tables=["sweep"], samples=64, beta=[0, 1], engine=engine, derivative=way)
        for engine in ("fast", "reference")
        for way in ("auto", "difference")
    ]
    wanted = "quantity == 'variance' and space == 'gradient' and layer == 'all'"
    values = [frame["sweep"].query(wanted)["value"] for frame in frames]
    for actual in values[1:]:
        np.testing.assert_allclose(actual, values[0], rtol=1e-4)


def test_a_network_that_overwrites_what_is_kept_is_measured_without_them() -> None:
    torch.manual_seed(0)
    module = _Overwrites().double().requires_grad_(False)
    inputs = (torch.randn(2, 2).double(), torch.rand(2).double() / 2, torch.rand(2).double() / 2 + 0.5, None)
    notes: list[str] = []
    engine = prepare_engine(module, inputs, "fast", notes.append)
    assert isinstance(engine, FastEngine)
    assert engine.capabilities.reversible and not engine.capabilities.linearized and not notes
