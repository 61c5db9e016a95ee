"""Nonlinear layers as the linear maps they are at one point, so that a backward pass is cheap to differentiate.

A directional derivative is had here as the derivative of w -> J^T w, and several cotangents go through the same
backward pass. Both want J alone, never how J changes with the point: an activation keeps its slope, and layer
normalisation its projection, where torch would rebuild them and their own derivatives each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode

__all__ = ["Linearised"]

_ACTIVATIONS: set[Callable[..., Tensor]] = {F.gelu, F.silu, F.softplus, F.mish, torch.tanh, torch.sigmoid}


class Linearised(TorchFunctionMode):
    """Within, activations and layer normalisation have first derivatives that are constants to autograd."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ACTIVATIONS and len(args) == 1 and not kwargs.get("inplace"):
            return _Activation.apply(args[0], func, kwargs)
        if func is F.layer_norm:
            return _layer_norm(*args, **kwargs)
        return func(*args, **kwargs)


class _Activation(torch.autograd.Function):
    """y = f(x) entry by entry: J^T g = f'(x) g."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, f: Callable[..., Tensor], options: Mapping[str, Any]) -> Tensor:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            y = f(at, **options)
            (slope,) = torch.autograd.grad(y, at, torch.ones_like(y))
        ctx.save_for_backward(slope)
        return y.detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return g * ctx.saved_tensors[0], None, None


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    y = _Normalised.apply(x, tuple(shape), eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


class _Normalised(torch.autograd.Function):
    """y = (x - mean) / s over the last axes, s^2 = var + eps: J = (I - 1 1^T / N - y y^T / N) / s, symmetric."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...], eps: float) -> Tensor:
        y, _, inverse = torch.native_layer_norm(x, shape, None, None, eps)
        ctx.axes = tuple(range(-len(shape), 0))
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        y, inverse = ctx.saved_tensors
        return _Projection.apply(g, y, inverse, ctx.axes), None, None


class _Projection(torch.autograd.Function):
    """J g, linear in g: its own backward pass is itself."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, y: Tensor, inverse: Tensor, axes: tuple[int, ...]) -> Tensor:
        ctx.axes = axes
        ctx.save_for_backward(y, inverse)
        along = (g * y).mean(axes, keepdim=True)
        return torch.addcmul(g - g.mean(axes, keepdim=True), y, along, value=-1).mul_(inverse)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        y, inverse = ctx.saved_tensors
        return _Projection.apply(g, y, inverse, ctx.axes), None, None, None
