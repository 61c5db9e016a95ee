"""Copies of a network, and its floating-point precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.models.closures import deepcopy_with_closures
from mfdiag.models.plain_calls import make_calls_plain

__all__ = ["copy_network", "in_precision", "measured_copy"]

_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def in_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast the parameters and buffers of `module` to `dtype`, in place.

    Complex parameters get the complex dtype of the same precision. Complex buffers keep their dtype.

    `module.to(dtype)` would drop the imaginary part of complex tensors, such as rotary tables.
    """

    def cast(value: Tensor) -> Tensor:
        if value.is_complex() and isinstance(value, nn.Parameter) and dtype in _COMPLEX:
            return value.to(_COMPLEX[dtype])
        return value.to(dtype) if value.is_floating_point() else value

    return module._apply(cast)


def copy_network(module: nn.Module) -> nn.Module:
    """A deep copy of `module`.

    Tensors that a forward pass left in attributes, as old-style `weight_norm` does, are copied without their graph.
    Hooks and other functions that hold parts of the network hold those of the copy.

    Raises:
        InputError: A part of the network is TorchScript.
    """
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise InputError(
                f"Expected a network of Python code, but {name or 'it'} is a {type(part).__name__} of TorchScript, "
                "which has no per-sample gradients: build the network without torch.jit.load, script or trace, or let "
                "mfdiag run the code that scripts it, with --model FILE.py:factory."
            )
    computed = {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in part.__dict__.values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return deepcopy_with_closures(module, computed)


def measured_copy(module: nn.Module, device: str | torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy to measure: in eval mode, without gradients, and with calls that are plain functions of their inputs.

    Args:
        module: The network; it is left as it was.
        device: Where the copy runs.
        dtype: Its precision.

    Returns:
        The copy.
    """
    trained_in = frozenset(p.dtype for p in module.parameters() if p.is_floating_point())
    copied = in_precision(copy_network(module).to(device), dtype)
    return make_calls_plain(copied.eval().requires_grad_(False), dtype, trained_in)
