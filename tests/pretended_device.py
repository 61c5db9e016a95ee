"""A device that this machine does not have: tensors that hold their numbers on the CPU and say that they are elsewhere.

Its name is `meta`, because torch takes that name everywhere. As on a GPU, an operation must not mix its tensors with
those of the CPU, except numbers, and numpy must not read them. Transformations of torch.func cannot be pretended.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = "meta"
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
BY_INDEX = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}  # indices may lie on the CPU


class DeviceTensor(Tensor):
    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> DeviceTensor:
        tensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )
        tensor.inner = inner
        return tensor

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.inner})"

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(torch.as_tensor(index) if isinstance(index, list) else index)

    def __setitem__(self, index: Any, value: Any) -> None:  # torch would put a list on the real device of this name
        super().__setitem__(torch.as_tensor(index) if isinstance(index, list) else index, value)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Device(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    assert all(isinstance(t, DeviceTensor) or t.device.type != DEVICE for t in tensors), f"{func} would lose numbers"
    here = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    away = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor) and tensor.ndim]
    if here and away and func not in COPIES | BY_INDEX:
        raise RuntimeError(
            f"{func} mixes devices: {[tuple(t.shape) for t in here]} and {[tuple(t.shape) for t in away]}"
        )
    device = kwargs.get("device")
    target = None if device is None else torch.device(device).type
    if target == DEVICE:
        kwargs = {**kwargs, "device": "cpu"}
    plain_args, plain_kwargs = tree_map(lambda a: a.inner if isinstance(a, DeviceTensor) else a, (args, kwargs))
    result = func(*plain_args, **plain_kwargs)
    if func._schema.is_mutable and result is not None and isinstance(args[0], Tensor) and result is plain_args[0]:
        return args[0]
    if target == "cpu" or not (here or target == DEVICE):
        return result
    outputs = {id(a.inner): a for a in here}
    return tree_map(lambda a: outputs.get(id(a)) or DeviceTensor(a) if isinstance(a, Tensor) else a, result)


@contextmanager
def pretended_device() -> Iterator[str]:
    """The name of the device, within the block."""
    with Device():
        yield DEVICE
