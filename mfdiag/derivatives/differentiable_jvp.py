"""Derivatives of the network that carry a gradient to its parameters: on dual numbers, or by double backward."""

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
from mfdiag.derivatives.reverse_mode import jvps_by_double_backward

__all__ = ["DifferentiableJvp", "Point", "jvp_by_double_backward", "jvp_by_dual_numbers"]

Point = tuple[Tensor, Tensor, Tensor]
"""x [n, *shape], r [n], t [n], or tangents of the same shapes."""

DifferentiableJvp = Callable[[Callable[..., Tensor], Point, Point], tuple[Tensor, Tensor]]
"""(evaluate, point, tangents) -> u = evaluate(*point) and its derivative, both with a gradient to the parameters."""


def jvp_by_dual_numbers(evaluate: Callable[..., Tensor], point: Point, tangents: Point) -> tuple[Tensor, Tensor]:
    """Compute u and its derivative in one pass on dual numbers.

    Args:
        evaluate: The network, evaluate(x, r, t) -> u.
        point: Where it is evaluated.
        tangents: Tangents of x, r and t.

    Returns:
        u and its derivative along the tangents, both [n, *shape] with a gradient to the parameters.
    """
    with twice_differentiable(), _Elementary(), forward_ad.dual_level():
        u = forward_ad.unpack_dual(evaluate(*map(forward_ad.make_dual, point, tangents)))
    return u.primal, torch.zeros_like(u.primal) if u.tangent is None else u.tangent


def jvp_by_double_backward(evaluate: Callable[..., Tensor], point: Point, tangents: Point) -> tuple[Tensor, Tensor]:
    """Compute u and its derivative from reverse mode alone.

    Args:
        evaluate: The network, evaluate(x, r, t) -> u.
        point: Where it is evaluated.
        tangents: Tangents of x, r and t.

    Returns:
        u and its derivative along the tangents, both [n, *shape] with a gradient to the parameters.
    """
    inputs = [a.detach().requires_grad_() for a in point]
    with twice_differentiable(), _Elementary():
        u = evaluate(*inputs)
        (derivative,) = jvps_by_double_backward(u, inputs, [tangents], create_graph=True)
    return u, derivative


class _Elementary(TorchFunctionMode):
    """Replaces functions whose derivative has itself a wrong gradient by elementary steps.

    Softmax on dual numbers overwrites what reverse mode saved (https://github.com/pytorch/pytorch/issues/162350). The
    derivative of layer normalization treats its mean and scale as constants.
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


def _softmax(input: Tensor, dim: int = -1, **options: Any) -> Tensor:
    weights = (input - input.detach().amax(dim, keepdim=True)).exp()
    return weights / weights.sum(dim, keepdim=True)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *options: Any,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    centered = input - input.mean(axes, keepdim=True)
    normal = centered * (centered.square().mean(axes, keepdim=True) + eps).rsqrt()
    normal = normal if weight is None else normal * weight
    return normal if bias is None else normal + bias


def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    scale = 1 / sqrt(query.shape[-1]) if scale is None else scale
    return _softmax(scale * query @ key.transpose(-1, -2)) @ value
