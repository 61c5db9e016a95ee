"""Directional derivatives by forward mode: one primal pass serves all tangents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vmap

from mfdiag.derivatives.attention import twice_differentiable
from mfdiag.errors import NETWORK_ERRORS, InputError, first_line, is_out_of_memory
from mfdiag.fields.inputs import VelocityFunction
from mfdiag.flow.conditions import Condition

__all__ = ["NoForwardModeError", "forward_mode_derivatives"]

_TANGENTS_AT_ONCE = 16  # more would hold that many copies of every activation
_SHARED_PRIMAL: Any = (None, 0)  # u once, its derivatives stacked over tangents


class NoForwardModeError(InputError):
    """The network has no forward-mode derivative; `reason` is torch's."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The model has no forward-mode derivative, which du/dx v + du/dt needs: {reason}. Pass --derivative auto "
            "or --derivative difference."
        )
        self.reason = reason


def forward_mode_derivatives(
    model: VelocityFunction, x: Tensor, r: Tensor, t: Tensor, condition: Condition, dx: Tensor, dt: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute u and its derivatives along tangents in x and t, with dr = 0.

    Args:
        model: The network, u(x, r, t, labels).
        x: Points, [n, *shape].
        r: Start times, [n].
        t: End times, [n].
        condition: Labels [n], `Conditions` or None.
        dx: Tangents of x, [m, n, *shape].
        dt: Tangents of t, [m, n].

    Returns:
        u [n, *shape], and m derivatives [m, n, *shape].

    Raises:
        NoForwardModeError: A layer of the network does not implement forward mode.
    """

    def along(dx_one: Tensor, dt_one: Tensor) -> tuple[Tensor, ...]:
        return jvp(lambda x_, t_: model(x_, r, t_, condition), (x, t), (dx_one, dt_one))

    chunks = zip(dx.split(_TANGENTS_AT_ONCE), dt.split(_TANGENTS_AT_ONCE), strict=True)
    with torch.no_grad(), twice_differentiable():
        try:
            parts = [vmap(along, out_dims=_SHARED_PRIMAL)(*chunk) for chunk in chunks]
            return parts[0][0], torch.cat([derivatives for _, derivatives in parts])
        except NETWORK_ERRORS as error:
            if is_out_of_memory(error):
                raise
            raise NoForwardModeError(first_line(error).partition(". ")[0]) from error
