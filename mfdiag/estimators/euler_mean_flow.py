"""Euler Mean Flows: an Euler step of the network's own velocity replaces the derivative.

`endpoint=1` is the form for x-prediction: it differences the end x_t - t u of the path instead of u. Both tend to
MeanFlow with the tangent of `self_tangent` as the step falls to 0. The paper's loss on the end has the weight 1/t^2,
which makes it one on u; its clamp of t at 0.02 is left out here, that of r is not.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mfdiag.estimators._arguments import require, with_arguments
from mfdiag.estimators._base import Estimator, Needs

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import Fields

__all__ = ["ESTIMATOR"]

_LEAST_START = 0.02  # the paper's lower bound of r where it divides


def residual(fields: Fields, step: float, endpoint: bool) -> Tensor:
    # arXiv 2602.02571: (t-r) u = h u(x_t,t-h,t) + (t-r-h) u(x_{t-h},r,t-h) with v_c for the velocity over the first
    # part, solved for u (docs/theory.md#family-targets). The target under stop-gradient is
    #     v_c - (t-r-h)^+ (u - u(x_{t-h},r,t-h)) / h,  x_{t-h} = x_t - h u(x_t,t,t).
    # For the end y = x_t - t u the difference quotient of u is that of y, divided by -r.
    rest = (fields.gap - step).clamp_min(0)
    late = fields.t - step * (rest > 0).to(rest)  # where the first part is the whole interval, the factor is 0
    x = fields.x - (fields.t - late) * fields.instantaneous_velocity("self", fields.x, fields.t)
    u = fields.average_velocity(x, fields.r, late)
    if endpoint:
        change = (x - late * u) - (fields.x - fields.t * fields.u)
        return fields.u - fields.v_c + rest / (step * fields.r.clamp_min(_LEAST_START)) * change
    return fields.u - fields.v_c + rest / step * (fields.u - u)


def build(name: str, step: float, endpoint: float) -> Estimator:
    require(0 < step <= 0.5, name, "step must be above 0 and at most 0.5")
    require(endpoint in (0, 1), name, "endpoint must be 0 or 1")
    return Estimator(
        name,
        "Euler Mean Flows: an Euler step instead of a derivative: euler_mean_flow:[step=0.05],[endpoint=0]",
        "arXiv 2602.02571",
        "u - v_c + max(t-r-h,0) [u - u(x_{t-h},r,t-h)]/h, x_{t-h} = x_t - h u(x_t,t,t)",
        partial(residual, step=step, endpoint=bool(endpoint)),
        needs=Needs(forwards=2),
        affine=True,
    )


ESTIMATOR = with_arguments("euler_mean_flow", {"step": 0.05, "endpoint": 0}, build)
