"""Networks that the user's own code builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mfdiag.errors import InputError
from mfdiag.usercode import call_user_factory

if TYPE_CHECKING:
    from torch import nn

__all__ = ["PARAMETER_ORDER", "call_factory"]

PARAMETER_ORDER = "_mfdiag_parameter_order"  # attribute of a network: its parameters before frozen ones became buffers


def call_factory(factory: str, option: str = "--model", arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a network with the user's code.

    In a network that has trained parameters, frozen and empty ones become buffers of the same names: training never
    changed them, so they have no gradient to measure.

    Args:
        factory: `FILE.py:factory` or `pkg.module:factory`; the code is run.
        option: The option or card that names the factory, for errors.
        arguments: Keyword arguments of the factory.

    Returns:
        The network.

    Raises:
        InputError: If the code is missing or fails, or returns something other than a torch.nn.Module.
    """
    from torch import nn

    model = call_user_factory(factory, option, arguments)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"Expected {factory} to return a torch.nn.Module, but it returned {type(model).__name__}; "
            "return the network itself."
        )
    model.__dict__[PARAMETER_ORDER] = [name for name, _ in model.named_parameters()]
    if any(p.requires_grad and p.numel() for p in model.parameters()):
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if not parameter.requires_grad or not parameter.numel():
                    delattr(module, name)
                    module.register_buffer(name, parameter.detach())
    return model
