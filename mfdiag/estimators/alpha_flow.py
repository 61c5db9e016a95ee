"""alpha-Flow: from trajectory flow matching (alpha = 1) to MeanFlow (alpha -> 0)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mfdiag.estimators._arguments import require, with_arguments
from mfdiag.estimators._base import Estimator, Needs

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import Fields

__all__ = ["ESTIMATOR"]


def residual(fields: Fields, alpha: float) -> Tensor:
    # arXiv 2510.20771: s = alpha r + (1-alpha) t, x_s = x_t - (t-s) v_c, and the loss
    #     1/alpha |u(x_t,r,t) - sg[alpha v_c + (1-alpha) u(x_s,r,s)]|^2
    # The weight 1/alpha becomes part of the residual. It tends to MeanFlow's as alpha -> 0, and at alpha = 1 it is
    # u - v_c (docs/theory.md#family-targets). The paper lowers alpha during training; here it is fixed.
    s = fields.t - alpha * fields.gap
    u_s = fields.average_velocity(fields.x - (fields.t - s) * fields.v_c, fields.r, s)
    return (fields.u - alpha * fields.v_c - (1 - alpha) * u_s) / alpha


def build(name: str, alpha: float) -> Estimator:
    require(0 < alpha <= 1, name, "alpha must be above 0 and at most 1")
    return Estimator(
        name,
        "alpha-Flow, from flow matching (alpha = 1) to MeanFlow (alpha -> 0): alpha_flow:[alpha=0.5]",
        "arXiv 2510.20771",
        "(u - alpha v_c - (1-alpha) u(x_s,r,s)) / alpha, x_s = x_t - (t-s) v_c, t-s = alpha (t-r)",
        partial(residual, alpha=alpha),
        needs=Needs(forwards=1),
    )


ESTIMATOR = with_arguments("alpha_flow", {"alpha": 0.5}, build)
