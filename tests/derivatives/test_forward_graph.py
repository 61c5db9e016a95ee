"""Derivatives by double backward: equal to torch.func.jvp, and not used where a network does not allow them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine_cases import DTYPES, TOLERANCE, prepared
from networks import NETWORKS
from torch import Tensor, nn

from mfdiag import InputError, measure
from mfdiag.derivatives.forward_mode import forward_mode_derivatives
from mfdiag.gradients.engine import prepare_engine
from mfdiag.gradients.fast_engine import FastEngine


@DTYPES
@pytest.mark.parametrize("name", NETWORKS)
def test_derivatives_equal_forward_mode(name: str, dtype: torch.dtype) -> None:
    module, inputs, cotangents = prepared(NETWORKS[name], dtype)
    x, r, t, y = inputs
    engine = prepare_engine(module, (x[:2], r[:2], t[:2], None if y is None else y[:2]), "fast", lambda _: None)
    assert isinstance(engine, FastEngine) and engine.capabilities.reversible
    torch.manual_seed(1)
    dx, dt = torch.randn(3, *x.shape, dtype=dtype), torch.randn(3, len(t), dtype=dtype)
    graph = engine.forward_graph(inputs)
    u, along = graph.derivatives(dx, dt)
    with torch.backends.mkldnn.flags(enabled=False):  # its recurrent layers in float32 have no forward mode
        expected_u, expected = forward_mode_derivatives(module, x, r, t, y, dx, dt)
    for actual, truth in ((u, expected_u), (along, expected)):
        assert (actual - truth).norm() <= TOLERANCE[dtype] * truth.norm()
    shared = {k: f.gram(2) for k, f in engine.factors(inputs, cotangents, graph)}  # the graph is still good
    fresh = {k: f.gram(2) for k, f in engine.factors(inputs, cotangents)}
    assert all(torch.equal(shared[k], fresh[k]) for k in fresh)


class _Once(torch.autograd.Function):
    """A square that can be differentiated once, and forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * g

    @staticmethod
    def jvp(ctx: Any, d: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * d


class _Wrong(torch.autograd.Function):
    """A square whose backward pass hides its own dependence on the cotangent's size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * (g + 3 * (g - g.detach()))


class _Squared(nn.Module):
    def __init__(self, square: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.square, self.inner, self.outer = square, nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.outer(self.square(self.inner(torch.cat([x, r[:, None], t[:, None]], 1))))


@pytest.mark.parametrize(
    ("square", "reversible"), [(torch.square, True), (_Once.apply, False), (_Wrong.apply, False)], ids=lambda _: None
)
def test_a_backward_pass_that_cannot_be_trusted_is_found_out(
    square: Callable[[Tensor], Tensor], reversible: bool
) -> None:
    module = _Squared(square).double().requires_grad_(False)
    inputs = (torch.randn(2, 2).double(), torch.rand(2).double() / 2, torch.rand(2).double() / 2 + 0.5, None)
    engine = prepare_engine(module, inputs, "fast", lambda _: None)
    assert isinstance(engine, FastEngine) and engine.capabilities.reversible == reversible


def test_without_any_derivative_there_is_the_difference() -> None:
    """Neither the backward pass nor forward mode: asked for all the same, what remains is one clear sentence."""
    options = {"data": "gaussian:2,0,1", "samples": 32, "tables": ("sweep",)}
    with pytest.raises(InputError, match="forward-mode derivative"):
        measure(_Squared(_Wrong.apply), derivative="jvp", **options)  # type: ignore[arg-type]
    frame = measure(_Squared(_Wrong.apply), **options)["sweep"]  # type: ignore[arg-type]
    assert frame["derivative"].str.startswith("difference:").all()
