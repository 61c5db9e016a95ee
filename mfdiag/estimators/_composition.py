"""One step from t to r as two steps over s: the target that SplitMeanFlow and Shortcut models share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields.fields import Fields

__all__ = ["composed"]


def composed(fields: Fields, share: Tensor | float) -> Tensor:
    """Residual u - [share u(x_s,r,s) + (1-share) u(x_t,s,t)] with s = r + share (t-r), x_s = x_t - (t-s) u(x_t,s,t).

    Where r = t the two sides are equal, and the residual is flow matching's u - v_c.
    """
    # (t-r) u(x_t,r,t) = (t-s) u(x_t,s,t) + (s-r) u(x_s,r,s), divided by t-r
    s = fields.r + share * fields.gap
    late = fields.velocity(fields.x, s, fields.t)
    early = fields.velocity(fields.x - (fields.t - s) * late, fields.r, s)
    target = share * early + (1 - share) * late
    return fields.u - target.where(fields.gap > 0, fields.v_c)
