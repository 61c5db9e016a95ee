"""Records where data meet parameters that no layer's rule serves, whatever in the network brings them together.

The network runs with these parameters as leaves of a graph. A tensor made from them alone (a slice, a normalized
weight) stays in this graph. The operation in which such a tensor and data first meet is where the gradients of single
samples are taken: by the operation's own rule, or by running it with a copy of the tensor for each sample.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

from mfdiag.flow.conditions import Condition, Conditions
from mfdiag.gradients.decompositions import decomposition_of
from mfdiag.gradients.factors import Dense, Factors, pulled_back
from mfdiag.gradients.operation_rules import Operation, operation_of

__all__ = ["ParameterUses", "RuledUse"]

_EXPANSIONS = (Tensor.expand, Tensor.repeat, Tensor.expand_as, Tensor.broadcast_to, torch.broadcast_to, torch.tile)
_MOST_COPIES = 1 << 22  # entries of one sample's copy of a tensor; above, the reference takes less memory


@dataclass(frozen=True)
class RuledUse:
    """How per-sample gradients follow from the cotangents of a recorded output.

    Attributes:
        tensors: What is made from parameters, by its name in the rule.
        names: The parameters that each is made from.
        rule: From the recorded input [n, ...] and cotangents [C, n, ...] to factors by name in the rule.
        of_copies: Whether the output is the copies of one tensor for each sample, and there is no input.
    """

    tensors: Mapping[str, Tensor]
    names: Mapping[str, frozenset[str]]
    rule: Callable[[Tensor, Tensor], dict[str, Factors]]
    of_copies: bool = False

    def by_parameter(
        self, a: Tensor, g: Tensor, leaves: Mapping[str, Tensor], *, of_tangent: bool = False
    ) -> dict[str, list[Factors]]:
        """Factors of the per-sample gradients of parameters.

        Args:
            a: The recorded input, [n, ...].
            g: Cotangents of the recorded output, [C, n, ...].
            leaves: The parameters by name, as the network ran with them.
            of_tangent: Whether `a` and the output are tangents: y' = W a', whatever the bias.

        Returns:
            By parameter, one for each tensor that is made from it.
        """
        factors, by_name = self.rule(a, g), defaultdict[str, list[Factors]](list)
        for key, tensor in self.tensors.items():
            if of_tangent and key == "bias":
                continue
            for name in self.names[key]:
                of_tensor = pulled_back(factors[key], tensor, leaves[name], g.shape[1], len(g))
                by_name[name].append(of_tensor)
        return by_name

    @property
    def all_names(self) -> frozenset[str]:
        """The parameters that any of the tensors is made from."""
        return frozenset().union(*self.names.values())


Record = Callable[[str, Tensor, Tensor, RuledUse], Tensor]
"""(first name, input, output, how its gradients follow) -> the output that the network goes on with."""


class ParameterUses(TorchFunctionMode):
    """Within this context, operations on data and on tensors made from `parameters` are recorded.

    Args:
        parameters: Leaves by name; they require a gradient.
        data: The network's inputs at n samples.
        record: Receives each use.
        refused: Receives parameters of which an operation has no gradients sample by sample.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], data: Iterable[Condition], record: Record, refused: set[str]
    ) -> None:
        super().__init__()
        self.record, self.refused = record, refused
        self._names = WeakIdKeyDictionary({p: frozenset({name}) for name, p in parameters.items()})
        self._parameters = parameters  # held, since the dictionary's keys are weak
        self._data = WeakIdKeyDictionary()
        self._n = 0
        for part in data:
            for tensor in part.tensors.values() if isinstance(part, Conditions) else [part]:
                if tensor is not None:
                    self._data[tensor] = True
                    self._n = len(tensor)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [*_tensors(args), *_tensors(kwargs.values())]
        of_data = any(tensor in self._data for tensor in tensors)
        names = frozenset[str]().union(*(self._names.get(tensor, ()) for tensor in tensors))
        if not names:
            out = func(*args, **kwargs)
        elif of_data:
            out = self._written_out(func, args, kwargs)
            if out is None:
                out = self._meet(func, args, kwargs, names)
        else:
            out = func(*args, **kwargs)
            if func in _EXPANSIONS and self._is_for_each_sample(out, tensors[0]):
                return self._expanded(out, names)
            self._derive(out, names)
        if of_data:
            for tensor in _tensors([out]):
                self._data[tensor] = True
        return out

    def _written_out(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of a function that hides linear maps, each of them recorded; None for other functions."""
        decomposition = decomposition_of(func, args, kwargs) if torch.is_grad_enabled() else None
        if decomposition is None or any(tensor in self._names for tensor in decomposition.data):
            return None
        for tensor in decomposition.data:
            self._data[tensor] = True
        with self:
            return decomposition.run()

    def _derive(self, out: Any, names: frozenset[str]) -> None:
        """Marks what is made from parameters, with a graph to them."""
        for tensor in _tensors([out]):
            if tensor.requires_grad:
                self._names[tensor] = names

    def _is_for_each_sample(self, out: Tensor, before: Tensor) -> bool:
        """Whether an expansion gives each sample its own entries along the first axis."""
        new = out.ndim > before.ndim or before.shape[:1] == (1,)
        return new and out.ndim > 0 and len(out) > 0 and len(out) % self._n == 0 and torch.is_grad_enabled()

    def _expanded(self, out: Tensor, names: frozenset[str]) -> Tensor:
        use = RuledUse({"copies": out[: len(out) // self._n]}, {"copies": names}, _of_copies, of_copies=True)
        output = self.record(min(names), out.new_empty(0), out.detach().clone().requires_grad_(), use)
        self._data[output] = True
        return output

    def _meet(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], names: frozenset[str]
    ) -> Any:
        """The result of an operation on data and parameters, recorded where gradients are wanted."""
        leaves, spec = tree_flatten((args, kwargs))
        constant = [leaf.detach() if self._of_parameters(leaf) else leaf for leaf in leaves]
        plain_args, plain_kwargs = tree_unflatten(constant, spec)
        if not torch.is_grad_enabled():
            return func(*plain_args, **plain_kwargs)
        operation = operation_of(func, args, kwargs)
        if operation is not None and self._suits(operation, leaves):
            output = func(*plain_args, **plain_kwargs)
            if isinstance(output, Tensor) and output.ndim and len(output) == len(operation.input):
                return self._ruled(operation, output)
        else:
            try:
                return self._with_copies(func, leaves, spec)
            except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
                output = func(*plain_args, **plain_kwargs)
        self.refused |= names
        return output

    def _of_parameters(self, leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and leaf in self._names

    def _suits(self, operation: Operation, leaves: Iterable[Any]) -> bool:
        """Whether the input is data, and parameters occur where the rule expects them alone."""
        ruled = {id(tensor) for tensor in operation.parameters.values()}
        places = all(id(leaf) in ruled for leaf in leaves if self._of_parameters(leaf))
        data = not any(tensor is not None and tensor in self._data for tensor in operation.parameters.values())
        a = operation.input
        return places and data and a in self._data and a.ndim > 0 and len(a) > 0 and len(a) % self._n == 0

    def _ruled(self, operation: Operation, output: Tensor) -> Tensor:
        tensors = {
            key: tensor
            for key, tensor in operation.parameters.items()
            if tensor is not None and self._of_parameters(tensor)
        }
        use = RuledUse(tensors, {key: self._names[tensor] for key, tensor in tensors.items()}, operation.rule)
        return self.record(min(use.all_names), operation.input, output, use)

    def _with_copies(self, func: Callable[..., Any], leaves: Sequence[Any], spec: Any) -> Tensor:
        """The operation for each sample with its own copy of every tensor made from parameters."""
        if _changes_arguments(func):
            raise ValueError("An operation in place has no copies.")
        values, axes = [], []
        for leaf in leaves:
            axis: int | None = 0
            if not isinstance(leaf, Tensor):
                axis = None
            elif leaf in self._names:
                leaf = self._copied(leaf)
            elif leaf in self._data:
                leaf = leaf.unflatten(0, (self._n, -1))
            else:
                axis = None
            values.append(leaf)
            axes.append(axis)
        mapped = [value for value, axis in zip(values, axes, strict=True) if axis == 0]

        def of_sample(*parts: Tensor) -> Tensor:
            remaining = iter(parts)
            filled = [next(remaining) if axis == 0 else value for value, axis in zip(values, axes, strict=True)]
            args, kwargs = tree_unflatten(filled, spec)
            return func(*args, **kwargs)

        with torch._C.DisableTorchFunction():  # what replaces functions does not support vmap
            out = vmap(of_sample)(*mapped)
            if not isinstance(out, Tensor) or out.ndim < 2:
                raise ValueError("The operation has no result for each sample.")
            return out.flatten(0, 1)

    def _copied(self, tensor: Tensor) -> Tensor:
        """A copy of `tensor` for each sample, whose gradient is recorded."""
        if tensor.numel() > _MOST_COPIES:
            raise ValueError("The copies would take too much memory.")
        copies = tensor.detach().expand(self._n, *tensor.shape).clone().requires_grad_()
        names = self._names[tensor]
        use = RuledUse({"copies": tensor}, {"copies": names}, _of_copies, of_copies=True)
        return self.record(min(names), copies.new_empty(0), copies, use)


def _of_copies(a: Tensor, g: Tensor) -> dict[str, Factors]:
    """The gradients of copies, one for each sample, or one for each of its points."""
    return {"copies": Dense(g[..., None].flatten(2))}


def _changes_arguments(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    return name in ("__setitem__", "__iadd__", "__imul__", "__isub__", "__itruediv__") or (
        name.endswith("_") and not name.endswith("__")
    )


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among values and within lists, tuples and dicts of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())
