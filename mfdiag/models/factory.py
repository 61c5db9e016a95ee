"""Networks made by the user's own code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.errors import InputError
from mfdiag.usercode import call_user

if TYPE_CHECKING:
    from torch import nn

__all__ = ["call_factory"]


def call_factory(factory: str, option: str = "--model") -> nn.Module:
    """The network returned by `FILE.py:factory` or `pkg.module:factory`, called without arguments.

    `option` names it in errors. Raises InputError as `call_user` does, and if something other than a torch.nn.Module is
    returned.
    """
    from torch import nn

    model = call_user(factory, option)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"Expected {factory} to return a torch.nn.Module, but it returned {type(model).__name__}; "
            "return the network itself."
        )
    return model
