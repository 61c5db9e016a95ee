"""Copies of a network, and its floating-point precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mfdiag.errors import InputError, first_line
from mfdiag.models.call_caches import reachable_containers, stored_tensors
from mfdiag.models.closures import deepcopy_with_closures
from mfdiag.models.factory import is_sharded
from mfdiag.models.plain_calls import make_calls_plain

__all__ = ["copy_network", "in_precision", "measured_copy", "require_device"]

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
        InputError: A part of the network is TorchScript or shards its parameters, or an attribute is a view of one.
    """
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise InputError(
                f"Expected a network of Python code, but {name or 'it'} is a {type(part).__name__} of TorchScript, "
                "which has no per-sample gradients: build the network without torch.jit.load, script or trace, or let "
                "mfdiag run the code that scripts it, with --model FILE.py:factory."
            )
        if is_sharded(part):
            raise InputError(
                f"Expected a network with whole parameters, but {name or 'it'} is a {type(part).__name__}, which "
                "shards them: pass the network as it is before it is sharded, with its gathered weights."
            )
    _refuse_views(module)
    stored = [t for part in module.modules() for value in part.__dict__.values() for t in stored_tensors(value)]
    for _, container in reachable_containers(module):  # those within are listed themselves
        stored += stored_tensors(container, depth=1) if isinstance(container, dict | list) else ()
    computed = {id(tensor): tensor.detach().clone() for tensor in stored if not tensor.is_leaf}
    return deepcopy_with_closures(module, computed)


def _refuse_views(module: nn.Module) -> None:
    """InputError where an attribute is a view of a parameter: in a copy, its gradient would not reach the parameter."""
    storages = {p.untyped_storage().data_ptr(): name for name, p in module.named_parameters() if p.numel()}
    for prefix, part in module.named_modules():
        for attribute, value in part.__dict__.items():
            if not isinstance(value, Tensor) or isinstance(value, nn.Parameter) or value.layout != torch.strided:
                continue
            if f"{attribute}_orig" in part._parameters:  # old-style spectral_norm computes it in each forward pass
                continue
            if name := storages.get(value.untyped_storage().data_ptr()):
                raise InputError(
                    f"Expected views of parameters to be taken in forward, but {prefix}{'.' * bool(prefix)}{attribute} "
                    f"is a view of {name} that was taken once: take it in forward, so that its gradient is measured."
                )


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
    for layer in copied.modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            layer.sparse = False  # the same gradient, in a layout that has norms and sums
    return make_calls_plain(copied.eval().requires_grad_(False), dtype, trained_in)


def require_device(name: str) -> None:
    """InputError with the backend's reason, unless a computation on the device works."""
    try:
        torch.ones(1, device=name).item()  # computes something: naming an absent or `meta` device raises nothing yet
    except Exception as error:  # each backend raises its own errors
        reason = first_line(error).partition(". ")[0].rstrip(".")
        if reason.startswith("Expected one of"):  # torch lists every backend that it could be built with
            reason = "torch knows no such device"
        raise InputError(
            f"--device {name!r} cannot be used here: {reason}. Pass cpu, or a GPU of this machine."
        ) from None
