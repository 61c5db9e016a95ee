"""Layers replaced by their linearization at one point, so that a backward pass is cheap to differentiate.

A directional derivative is the derivative of w -> J^T w at w = 0, and several cotangents go through the same backward
pass. Both need J alone, never how J changes with the point. So an activation saves its slope, layer normalization its
projection, and attention its weights; torch would recompute them, and their derivatives, each time. The backward pass
that is differentiated starts from w = 0, so it is recorded without computing its products, which are 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode

from mfdiag.derivatives.attention import is_plain_attention

__all__ = ["Linearized"]

_ACTIVATIONS: set[Callable[..., Tensor]] = {F.gelu, F.silu, F.softplus, F.mish, torch.tanh, torch.sigmoid}


class Linearized(TorchFunctionMode):
    """Within this context, linear layers, activations, layer norm and plain attention have constant derivatives.

    A backward pass that is itself recorded (`create_graph`) must start from w = 0, as `ForwardGraph.derivatives` does.
    A backward pass within the context, as in a network that is itself a gradient, raises RuntimeError.
    """

    entered = 0  # contexts that are open now

    def __enter__(self) -> Linearized:
        Linearized.entered += 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        Linearized.entered -= 1
        super().__exit__(*error)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and not kwargs and args[1].ndim == 2 and _is_constant(args[1:]):
            return _Linear.apply(*args, *[None] * (3 - len(args)))
        if func in _ACTIVATIONS and len(args) == 1 and not args[0].is_complex() and not kwargs.get("inplace"):
            return _Activation.apply(args[0], func, kwargs)
        if func is F.layer_norm:
            return _layer_norm(*args, **kwargs)
        if func is F.scaled_dot_product_attention and _is_plain(args, kwargs):
            return _Attention.apply(*args, kwargs.get("scale"))
        return func(*args, **kwargs)


def _is_constant(parameters: Sequence[Tensor | None]) -> bool:
    """Whether all are real and without a gradient. The transpose of a complex map would need its conjugate."""
    return not any(p is not None and (p.requires_grad or p.is_complex()) for p in parameters)


def _is_plain(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether attention is plain, its queries, keys and values have equal batch axes, and its scale has a root."""
    if not is_plain_attention(args, kwargs):
        return False
    q, k, v = args
    scale = kwargs.get("scale")
    return q.shape[:-2] == k.shape[:-2] == v.shape[:-2] and (scale is None or scale > 0)


_LinearMap = Callable[..., Any]


def _transposed_product(
    g: Tensor, transposed: _LinearMap, direct: _LinearMap, *shapes: torch.Size
) -> tuple[Tensor, ...]:
    """J^T g for inputs of `shapes`. Where it is recorded, g is 0 (from w = 0), and only its derivative J matters.

    `transposed` maps g to J^T g, `direct` tangents v of the inputs to J v.
    """
    if Linearized.entered:
        raise RuntimeError("The network differentiates itself, so it depends on how J changes with the point.")
    product = _RecordedProduct.apply(g, direct, *shapes) if g.requires_grad else transposed(g)
    return product if isinstance(product, tuple) else (product,)


class _RecordedProduct(torch.autograd.Function):
    """J^T g for g = 0, with the derivative J."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, direct: _LinearMap, *shapes: torch.Size) -> tuple[Tensor, ...]:
        ctx.direct = direct
        return tuple(map(g.new_zeros, shapes))

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.direct(*v), None, *[None] * len(v)


class _Linear(torch.autograd.Function):
    """y = W x + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape = x.shape
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return *_transposed_product(g, lambda g: g @ weight, lambda v: F.linear(v, weight), ctx.shape), None, None


class _Activation(torch.autograd.Function):
    """y = f(x) elementwise: J is diagonal."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, f: Callable[..., Tensor], options: Mapping[str, Any]) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y = f(leaf, **options)
            (slope,) = torch.autograd.grad(y.sum(), leaf)
        ctx.save_for_backward(slope)
        return y.detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return *_transposed_product(g, slope.mul, slope.mul, slope.shape), None, None


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    y = _Normalized.apply(x, tuple(shape), eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


class _Normalized(torch.autograd.Function):
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
        axes = ctx.axes

        def project(v: Tensor) -> Tensor:
            component = (v * y).mean(axes, keepdim=True)
            return torch.addcmul(v - v.mean(axes, keepdim=True), y, component, value=-1).mul_(inverse)

        return *_transposed_product(g, project, project, y.shape), None, None


class _Attention(torch.autograd.Function):
    """y = A v, A = softmax(c q k^T): dA = A * (dS - sum_j A dS), dS = c (dq k^T + q dk^T)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        ctx.root = root = (q.shape[-1] ** -0.5 if scale is None else scale) ** 0.5
        # both sides are scaled by the root, as in torch, so that both round alike
        q, k, v = (a.contiguous() for a in (root * q, root * k, v))
        weights = (q @ k.mT).softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        return weights @ v

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        root = ctx.root

        def softmax_jvp(d: Tensor) -> Tensor:  # symmetric
            product = weights * d
            return torch.addcmul(product, weights, product.sum(-1, keepdim=True), value=-1)

        def transposed(g: Tensor) -> tuple[Tensor, ...]:
            g = g.contiguous()
            scores = softmax_jvp(g @ v.mT)
            return root * (scores @ k), root * (scores.mT @ q), weights.mT @ g

        def direct(dq: Tensor, dk: Tensor, dv: Tensor) -> Tensor:
            return softmax_jvp(root * (dq @ k.mT + q @ dk.mT)) @ v + weights @ dv

        return *_transposed_product(g, transposed, direct, q.shape, k.shape, v.shape), None
