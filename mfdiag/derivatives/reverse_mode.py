"""Reverse mode: vector-Jacobian products J^T w, and Jacobian-vector products J v by differentiating them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["jvps_by_double_backward", "vjp"]


def vjp(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    inputs: Sequence[Tensor],
    *,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """Compute the gradient of sum_k <outputs[k], cotangents[k]> with respect to each input.

    torch.autograd.grad(outputs, inputs, cotangents) gives the same result, but imports sympy to compare shapes. That
    costs half a second and 35 MB in every process.

    Args:
        outputs: Tensors with a graph to `inputs`.
        cotangents: One for each output, of its shape.
        inputs: Tensors that require a gradient.
        retain_graph: Keep the graph for another backward pass.
        create_graph: Record the backward pass itself, so that it can be differentiated.

    Returns:
        One gradient for each input, of its shape; zeros where no output depends on it.
    """
    with torch.enable_grad():
        pairs = zip(outputs, cotangents, strict=True)
        products = [(output * w).sum() for output, w in pairs if output.requires_grad or w.requires_grad]
    if not products:
        return tuple(map(torch.zeros_like, inputs))
    return torch.autograd.grad(
        products,
        inputs,
        retain_graph=retain_graph or create_graph,
        create_graph=create_graph,
        materialize_grads=True,
    )


def jvps_by_double_backward(
    output: Tensor, inputs: Sequence[Tensor], tangents: Iterable[Sequence[Tensor]], *, create_graph: bool = False
) -> list[Tensor]:
    """Compute the derivatives J v of one output along tangents v, from reverse mode alone.

    The backward pass w -> J^T w is linear in w. Its own derivative in w along v is J v for every w, so w = 0 serves.
    One backward pass is recorded, and each tangent costs one more.

    Args:
        output: Tensor [n, *shape] with a graph to `inputs`; the graph is kept.
        inputs: Tensors that require a gradient.
        tangents: For each derivative, one tangent for each input, of its shape.
        create_graph: Record the derivatives themselves, so that they can be differentiated.

    Returns:
        One derivative [n, *shape] for each of `tangents`.
    """
    w = torch.zeros_like(output, requires_grad=True)
    transposed = vjp([output], [w], inputs, create_graph=True)
    derivatives: list[Tensor] = []
    for tangent in tangents:
        # J^T w has no graph to w for an input that the output does not depend on
        pairs = [(product, v) for product, v in zip(transposed, tangent, strict=True) if product.requires_grad]
        products, directions = [product for product, _ in pairs], [v for _, v in pairs]
        derivatives += vjp(products, directions, [w], retain_graph=True, create_graph=create_graph)
    return derivatives
