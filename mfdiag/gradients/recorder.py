"""Records what layers take and return in a forward pass, so that their gradients follow from those of their outputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from mfdiag.derivatives.forward_graph import ForwardGraph
from mfdiag.derivatives.reverse_mode import vjp
from mfdiag.flow.conditions import Condition
from mfdiag.gradients.functional import hooked
from mfdiag.gradients.parameter_uses import ParameterUses, RuledUse

__all__ = ["LayerUse", "RecordedForward", "Recording", "reachable", "record_uses"]


class LayerUse(NamedTuple):
    """One use of a layer y = f(a), with `input` a and `output` y.

    On dual numbers a use is recorded twice: once as above, and once with `output` y' and `tangent` a'. `version` is
    that of the output when it was recorded; a later version means that it was overwritten in place. `ruled` is set for
    an operation outside of layers with a rule; then `layer` is the name of a parameter that enters it.
    """

    layer: str
    input: Tensor
    output: Tensor
    version: int
    tangent: Tensor | None = None
    ruled: RuledUse | None = None


class Recording(NamedTuple):
    """What has been recorded so far.

    Attributes:
        uses: The uses, in the order of the forward pass.
        refused: Parameters of which an operation has no gradients sample by sample.
        of_operations: From the inputs [n, ...] of a call of the network to the context in which it is recorded how the
            operations of parameters follow from them.
    """

    uses: list[LayerUse]
    refused: set[str]
    of_operations: Callable[[Iterable[Condition]], AbstractContextManager[object]]


@contextmanager
def record_uses(
    layers: Mapping[str, nn.Module],
    copied: Container[str],
    parameters: Mapping[str, Tensor] = {},
    *,
    of_loss: bool = False,
) -> Iterator[Recording]:
    """Record every use of some layers within this context. Each recorded output requires a gradient.

    Args:
        layers: The layers by name.
        copied: Layers that pass on a copy of their output, since what follows overwrites it.
        parameters: Leaves by name whose operations are recorded too.
        of_loss: Whether a loss is computed. It may run the network on dual numbers, and under `no_grad` for a target;
            the latter is not recorded.

    Yields:
        The recording.
    """
    uses: list[LayerUse] = []

    def record(
        layer: str, input: Tensor, output: Tensor, tangent: Tensor | None = None, ruled: RuledUse | None = None
    ) -> Tensor:
        output = output if output.requires_grad else output.detach().requires_grad_()
        tangent = None if tangent is None else tangent.detach()
        uses.append(LayerUse(layer, input.detach(), output, output._version, tangent, ruled))
        return output.clone() if layer in copied else output

    def record_dual(layer: str, input: Tensor, out: Tensor, ruled: RuledUse | None = None) -> Tensor:
        if not of_loss:
            return record(layer, input, out, None, ruled)
        (a, a_tangent), (y, y_tangent) = forward_ad.unpack_dual(input), forward_ad.unpack_dual(out)
        y = record(layer, a, y, None, ruled)
        if a_tangent is None or y_tangent is None:
            return y
        return forward_ad.make_dual(y, record(layer, a, y_tangent, a_tangent, ruled))

    def hook_for(layer: str) -> Callable[[nn.Module, tuple[object, ...], Tensor], Tensor]:
        def hook(module: nn.Module, args: tuple[object, ...], out: Tensor) -> Tensor:
            if not isinstance(out, Tensor) or (of_loss and not torch.is_grad_enabled()):
                return out
            # no rule fits an empty input: a layer called by keyword, or on no tensor, is left to the reference
            input = args[0] if args and isinstance(args[0], Tensor) else out.new_empty(0)
            return record_dual(layer, input, out)

        return hook

    refused: set[str] = set()

    def of_operations(data: Iterable[Condition]) -> AbstractContextManager[object]:
        return ParameterUses(parameters, data, record_dual, refused) if parameters else nullcontext()

    with hooked(layers, hook_for):
        yield Recording(uses, refused, of_operations)


@dataclass(frozen=True)
class RecordedForward(ForwardGraph):
    """A forward pass with the uses of its layers.

    Attributes:
        uses: The uses of layers with a rule, and of operations.
        bare: Copies [n, ...] of parameters outside of layers.
        idle: Parameters without a gradient so far that have a graph to u, so that it must be computed.
        refused: Parameters of which an operation has no gradients sample by sample.
        operations: The leaves of parameters whose operations are recorded.
    """

    uses: list[LayerUse]
    bare: dict[str, Tensor]
    idle: dict[str, Tensor] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    operations: dict[str, Tensor] = field(default_factory=dict)

    @property
    def bytes_per_sample(self) -> int:
        """Memory of the recorded outputs."""
        return sum(use.output.numel() * use.output.element_size() for use in self.uses) // len(self.inputs[0])

    @property
    def overwritten(self) -> set[str]:
        """Layers whose output was overwritten in place after it was recorded."""
        return {use.layer for use in self.uses if use.output._version != use.version}

    def backward(self, cotangents: Tensor) -> Iterator[Tensor]:
        """Gradients from cotangents [C, n, *shape]: [C, n, ...] for uses and bare parameters, [C, ...] for idle ones.

        The gradients of all cotangents are stacked one target at a time, when it is asked for: this reuses warm memory.
        The graph is freed with the last cotangent.
        """
        targets = [use.output for use in self.uses] + list(self.bare.values()) + list(self.idle.values())
        if not targets or not self.u.requires_grad:
            return
        last = len(cotangents) - 1
        per_cotangent = [deque(vjp([self.u], [e], targets, retain_graph=c < last)) for c, e in enumerate(cotangents)]
        for _ in targets:
            yield torch.stack([gradients.popleft() for gradients in per_cotangent])


def reachable(output: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Find the leaves that an output has a graph to.

    Args:
        output: The output.
        leaves: Tensors that require a gradient, by name.

    Returns:
        Those of them that may have a gradient.
    """
    if not leaves or output.grad_fn is None:
        return {}
    nodes, variables = {output.grad_fn}, set()
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            variables.add(id(node.variable))
        new = {parent for parent, _ in node.next_functions if parent is not None} - nodes
        nodes |= new
        waiting += new
    return {name: leaf for name, leaf in leaves.items() if id(leaf) in variables}
