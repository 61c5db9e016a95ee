"""Reverse mode for cotangents of any shape, without what torch brings along for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["vjp"]


def vjp(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    inputs: Sequence[Tensor],
    *,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """The gradient of sum_k <outputs[k], cotangents[k]> for each of `inputs`; zeros where there is none.

    As torch.autograd.grad(outputs, inputs, cotangents) gives it, which would import sympy to compare shapes: half a
    second and 35 MB in every process.
    """
    with torch.enable_grad():
        products = [(u * w).sum() for u, w in zip(outputs, cotangents, strict=True)]
    if not products:
        return tuple(map(torch.zeros_like, inputs))
    return torch.autograd.grad(
        products,
        inputs,
        retain_graph=retain_graph or create_graph,
        create_graph=create_graph,
        materialize_grads=True,
    )
