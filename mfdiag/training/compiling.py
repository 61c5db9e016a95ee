"""Compiles a training step, without the matrix products by zero that forward-mode derivatives leave in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

__all__ = ["compile_step"]

aten = torch.ops.aten
_PRODUCTS = {aten.mm.default, aten.bmm.default}
_VIEWS = {aten.expand.default, aten.view.default, aten.permute.default, aten.reshape.default, aten.unsqueeze.default}


def compile_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """`step` as one compiled program, specialized to the shapes of its first call."""
    return torch.compile(
        step, fullgraph=True, dynamic=False, options={"post_grad_custom_pre_pass": _DropZeroProducts()}
    )


class _DropZeroProducts(CustomGraphPass):
    """Replaces matrix products that have a zero factor by zeros.

    A layer's weight has no tangent in a derivative with respect to x and t. Under vmap it gets one anyway, full of
    zeros, and with it a product that costs as much as the real one: a fifth of all products of a training step.
    """

    def __call__(self, graph: fx.Graph) -> None:
        for node in graph.nodes:
            if node.target in _PRODUCTS and any(map(_is_zero, node.args)):
                value = node.meta["val"]
                with graph.inserting_before(node):
                    zero = graph.call_function(
                        aten.full.default,
                        (list(value.shape), 0),
                        {"dtype": value.dtype, "device": value.device, "pin_memory": False},
                    )
                zero.meta["val"] = value
                node.replace_all_uses_with(zero)
        graph.eliminate_dead_code()

    def uuid(self) -> bytes:
        return get_hash_for_files((__file__,))


def _is_zero(node: Any) -> bool:
    while isinstance(node, fx.Node) and node.target in _VIEWS:
        node = node.args[0]
    return isinstance(node, fx.Node) and node.target is aten.full.default and bool(node.args[1] == 0)
