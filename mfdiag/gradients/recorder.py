"""Records what layers take and return in a forward pass, so that their gradients follow from those of their outputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from mfdiag.derivatives.forward_graph import ForwardGraph
from mfdiag.derivatives.reverse_mode import vjp
from mfdiag.gradients.functional import hooked

__all__ = ["LayerUse", "RecordedForward", "record_uses"]


class LayerUse(NamedTuple):
    """One use of a layer y = f(a), with `input` a and `output` y.

    On dual numbers a use is recorded twice: once as above, and once with `output` y' and `tangent` a'. `version` is
    that of the output when it was recorded; a later version means that it was overwritten in place.
    """

    layer: str
    input: Tensor
    output: Tensor
    version: int
    tangent: Tensor | None = None


@contextmanager
def record_uses(
    layers: Mapping[str, nn.Module], copied: Container[str], *, of_loss: bool = False
) -> Iterator[list[LayerUse]]:
    """Record every use of some layers within this context. Each recorded output requires a gradient.

    Args:
        layers: The layers by name.
        copied: Layers that pass on a copy of their output, since what follows overwrites it.
        of_loss: Whether a loss is computed. It may run the network on dual numbers, and under `no_grad` for a target;
            the latter is not recorded.

    Yields:
        The uses so far, in the order of the forward pass.
    """
    uses: list[LayerUse] = []

    def record(layer: str, input: Tensor, output: Tensor, tangent: Tensor | None = None) -> Tensor:
        output = output if output.requires_grad else output.detach().requires_grad_()
        tangent = None if tangent is None else tangent.detach()
        uses.append(LayerUse(layer, input.detach(), output, output._version, tangent))
        return output.clone() if layer in copied else output

    def hook_for(layer: str) -> Callable[[nn.Module, tuple[object, ...], Tensor], Tensor]:
        def hook(module: nn.Module, args: tuple[object, ...], out: Tensor) -> Tensor:
            if not isinstance(out, Tensor) or (of_loss and not torch.is_grad_enabled()):
                return out
            # no rule fits an empty input: a layer called by keyword, or on no tensor, is left to the reference
            input = args[0] if args and isinstance(args[0], Tensor) else out.new_empty(0)
            if not of_loss:
                return record(layer, input, out)
            (a, a_tangent), (y, y_tangent) = forward_ad.unpack_dual(input), forward_ad.unpack_dual(out)
            y = record(layer, a, y)
            if a_tangent is None or y_tangent is None:
                return y
            return forward_ad.make_dual(y, record(layer, a, y_tangent, a_tangent))

        return hook

    with hooked(layers, hook_for):
        yield uses


@dataclass(frozen=True)
class RecordedForward(ForwardGraph):
    """A forward pass with the uses of its layers, and `bare`: the copies [n, ...] of parameters outside of layers."""

    uses: list[LayerUse]
    bare: dict[str, Tensor]

    @property
    def bytes_per_sample(self) -> int:
        """Memory of the recorded outputs."""
        return sum(use.output.numel() * use.output.element_size() for use in self.uses) // len(self.inputs[0])

    @property
    def overwritten(self) -> set[str]:
        """Layers whose output was overwritten in place after it was recorded."""
        return {use.layer for use in self.uses if use.output._version != use.version}

    def backward(self, cotangents: Tensor) -> Iterator[Tensor]:
        """Gradients [C, n, ...] for each use's output, then for each bare parameter, from cotangents [C, n, *shape].

        The gradients of all cotangents are stacked one target at a time, when it is asked for: this reuses warm memory.
        The graph is freed with the last cotangent.
        """
        targets = [use.output for use in self.uses] + list(self.bare.values())
        if not targets or not self.u.requires_grad:
            return
        last = len(cotangents) - 1
        per_cotangent = [deque(vjp([self.u], [e], targets, retain_graph=c < last)) for c, e in enumerate(cotangents)]
        for _ in targets:
            yield torch.stack([gradients.popleft() for gradients in per_cotangent])
