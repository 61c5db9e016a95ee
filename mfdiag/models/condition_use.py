"""Whether a network uses what it is conditioned on: which inputs the values of its output were computed from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mfdiag.flow.conditions import Conditions

__all__ = ["unused_conditions"]


class _Dependence(TorchDispatchMode):
    """Follows which tensors were computed from `source`, by their storage, whatever the values are.

    The data flow decides, not a change of the output: a gate that is still zero uses what it multiplies.
    """

    def __init__(self, source: Tensor) -> None:
        super().__init__()
        self.storages = {source.untyped_storage()._cdata: source}  # the tensors keep their storages alive
        self.read_by_python = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(self.depends(value) for value in _tensors((args, kwargs))):
            written = [
                value
                for argument, value in zip(func._schema.arguments, args, strict=False)
                if argument.alias_info is not None and argument.alias_info.is_write
            ]
            results = _tensors((result, written))
            self.storages |= {value.untyped_storage()._cdata: value for value in results}
            self.read_by_python |= func is torch.ops.aten._local_scalar_dense.default
        return result

    def depends(self, value: Tensor) -> bool:
        """Whether a tensor was computed from the source."""
        return value.untyped_storage()._cdata in self.storages


def _tensors(values: Any) -> Iterator[Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, Tensor))


def unused_conditions(network: nn.Module, x: Tensor, r: Tensor, t: Tensor, conditions: Conditions) -> list[str]:
    """The arrays by name that the network's output does not depend on, at a few samples.

    Args:
        network: The network u(x, r, t, conditions).
        x: Points [n, *shape].
        r: Start times [n].
        t: End times [n].
        conditions: What it is conditioned on.

    Returns:
        Names of the arrays. A network that cannot be followed uses all of them.
    """

    def output_depends_on(source: Tensor, *inputs: Any) -> bool:
        with _Dependence(source) as dependence:
            output = network(*inputs)
        return dependence.read_by_python or any(map(dependence.depends, _tensors(output)))

    def with_array(name: str, array: Tensor) -> Conditions:
        return replace(conditions, arrays={**conditions.arrays, name: array})

    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}  # a network may write to them
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            if not output_depends_on(x, x, r, t, conditions):  # compiled code is not seen
                return []
            expected = network(x, r, t, conditions)
            unused = []
            for name, array in conditions.arrays.items():
                own = array.clone()  # several names may hold one tensor
                if not output_depends_on(own, x, r, t, with_array(name, own)):
                    unused.append(name)
            return [
                name
                for name in unused
                if torch.equal(network(x, r, t, with_array(name, conditions.arrays[name].roll(1, 0))), expected)
            ]
    except (Exception, SystemExit):  # whatever the user's network raises: the measurement says what it refuses
        return []
    finally:
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
