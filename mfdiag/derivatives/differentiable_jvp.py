"""Derivatives of the network that carry a gradient to its parameters: on dual numbers, or by reverse mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from mfdiag.derivatives.attention import is_plain_attention, twice_differentiable
from mfdiag.derivatives.vector_jacobian import vjp

__all__ = ["DifferentiableJvp", "Times", "jvp_by_double_backward", "jvp_by_dual_numbers"]

Times = tuple[Tensor, Tensor, Tensor]
"""x [n, *shape], r [n], t [n], or tangents of the same shapes."""

DifferentiableJvp = Callable[[Callable[..., Tensor], Times, Times], tuple[Tensor, Tensor]]
"""(evaluate, at, tangents) -> u = evaluate(*at) and its derivative along them, both with a gradient to parameters."""


def jvp_by_dual_numbers(evaluate: Callable[..., Tensor], at: Times, tangents: Times) -> tuple[Tensor, Tensor]:
    """u = evaluate(x, r, t) and its derivative along the tangents, each shaped as x, from one pass on dual numbers."""
    with twice_differentiable(), _Elementary(), forward_ad.dual_level():
        found = forward_ad.unpack_dual(evaluate(*map(forward_ad.make_dual, at, tangents)))
    return found.primal, torch.zeros_like(found.primal) if found.tangent is None else found.tangent


def jvp_by_double_backward(evaluate: Callable[..., Tensor], at: Times, tangents: Times) -> tuple[Tensor, Tensor]:
    """The same from reverse mode alone: w -> J^T w is linear, and its derivative in w along a tangent is J times it."""
    x, r, t = (a.detach().requires_grad_() for a in at)
    with twice_differentiable(), _Elementary():
        u = evaluate(x, r, t)
        w = torch.zeros_like(u, requires_grad=True)
        pulled = vjp([u], [w], [x, r, t], create_graph=True)
        kept = [(p, tangent) for p, tangent in zip(pulled, tangents, strict=True) if p.requires_grad]
        outputs, directions = [p for p, _ in kept], [tangent for _, tangent in kept]
        (found,) = vjp(outputs, directions, [w], create_graph=True)
    return u, found


class _Elementary(TorchFunctionMode):
    """Functions whose derivative has no right gradient of its own, in elementary steps.

    Softmax on dual numbers overwrites what reverse mode kept (https://github.com/pytorch/pytorch/issues/162350); the
    derivative of layer normalisation takes its mean and scale for constants.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.softmax, torch.softmax, Tensor.softmax):
            return _softmax(*args, **kwargs)
        if func in (F.layer_norm, torch.layer_norm):
            return _layer_norm(*args, **kwargs)
        if func is F.scaled_dot_product_attention and is_plain_attention(args, kwargs):
            query, key, value = args
            return _attention(query, key, value, kwargs.get("scale"))
        return func(*args, **kwargs)


def _softmax(input: Tensor, dim: int = -1, **ignored: Any) -> Tensor:
    weights = (input - input.detach().amax(dim, keepdim=True)).exp()
    return weights / weights.sum(dim, keepdim=True)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *ignored: Any,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(axes, keepdim=True)
    normal = centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    normal = normal if weight is None else normal * weight
    return normal if bias is None else normal + bias


def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    scale = 1 / sqrt(query.shape[-1]) if scale is None else scale
    return _softmax(scale * query @ key.transpose(-1, -2)) @ value
