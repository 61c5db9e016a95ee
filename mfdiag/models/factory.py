"""Networks made by the user's own code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mfdiag.errors import InputError
from mfdiag.usercode import call_user_factory

if TYPE_CHECKING:
    from torch import nn

__all__ = ["call_factory"]


def call_factory(factory: str, option: str = "--model", arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """The network returned by `FILE.py:factory` or `pkg.module:factory`, called with keyword `arguments`.

    Frozen parameters beside trained ones become buffers of the same names: training never moved them, so they have no
    gradient to measure. `option` names it in errors. Raises InputError as `call_user_factory` does, and if anything
    but a torch.nn.Module is returned.
    """
    from torch import nn

    model = call_user_factory(factory, option, arguments)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"Expected {factory} to return a torch.nn.Module, but it returned {type(model).__name__}; "
            "return the network itself."
        )
    if any(p.requires_grad for p in model.parameters()):
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if not parameter.requires_grad:
                    delattr(module, name)
                    module.register_buffer(name, parameter.detach())
    return model
