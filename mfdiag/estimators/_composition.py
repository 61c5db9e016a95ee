"""One step from t to r as two steps over s: the target of SplitMeanFlow, shortcut models and self-distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import Fields

__all__ = ["composed_velocity", "composition_residual"]


def composed_velocity(fields: Fields, share: Tensor | float, network: str = "self") -> Tensor:
    """share u(x_s,r,s) + (1-share) u(x_t,s,t), s = r + share (t-r), x_s = x_t - (t-s) u(x_t,s,t).

    It is the average velocity over [r, t] if u is that over both parts (docs/theory.md#family-targets).

    Args:
        fields: Fields of n samples.
        share: Length of the part [r, s] as a share of [r, t], in [0, 1]: a number, or [n, 1, ...].
        network: "self" for the measured network, or "ema".

    Returns:
        The velocity [n, *shape], without gradient.
    """
    # (t-r) u(x_t,r,t) = (t-s) u(x_t,s,t) + (s-r) u(x_s,r,s), divided by t-r
    s = fields.r + share * fields.gap
    late = fields.average_velocity(fields.x, s, fields.t, network)
    early = fields.average_velocity(fields.x - (fields.t - s) * late, fields.r, s, network)
    return share * early + (1 - share) * late


def composition_residual(fields: Fields, share: Tensor | float, network: str = "self") -> Tensor:
    """The residual u - `composed_velocity`; u - v_c at r = t, where the target would be the network itself.

    Args:
        fields: Fields of n samples.
        share: As in `composed_velocity`.
        network: As in `composed_velocity`.

    Returns:
        The residual [n, *shape].
    """
    target = composed_velocity(fields, share, network)
    return fields.u - target.where(fields.gap > 0, fields.v_c)
