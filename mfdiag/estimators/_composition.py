"""One step from t to r as two steps over s: the target that SplitMeanFlow and shortcut models share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import Fields

__all__ = ["composition_residual"]


def composition_residual(fields: Fields, share: Tensor | float) -> Tensor:
    """The residual u - [share u(x_s,r,s) + (1-share) u(x_t,s,t)] (docs/theory.md#family-targets).

    Here s = r + share (t-r) and x_s = x_t - (t-s) u(x_t,s,t). At r = t the target would be the network itself, so
    flow matching's u - v_c takes its place.

    Args:
        fields: Fields of n samples.
        share: Length of the part [r, s] as a share of [r, t], in [0, 1]: a number, or [n, 1, ...].

    Returns:
        The residual [n, *shape].
    """
    # (t-r) u(x_t,r,t) = (t-s) u(x_t,s,t) + (s-r) u(x_s,r,s), divided by t-r
    s = fields.r + share * fields.gap
    late = fields.average_velocity(fields.x, s, fields.t)
    early = fields.average_velocity(fields.x - (fields.t - s) * late, fields.r, s)
    target = share * early + (1 - share) * late
    return fields.u - target.where(fields.gap > 0, fields.v_c)
