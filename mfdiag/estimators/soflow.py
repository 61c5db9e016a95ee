"""SoFlow, solution flow models: a step of the sample's own path makes the target, plus flow matching; no derivative.

The paper's solution function is f(x_t, t, s) = x_t + (s-t) u(x_t, s, t), with s for r. The consistency part is that of
`alpha_flow` with alpha = `ratio`. The paper takes `flow_matching` of the samples of a batch for flow matching and the
others for consistency, each with times of its own; here every sample enters both parts, weighted, at the times of
`--times`. The paper lowers the ratio during training, from 0.1 to 0.002 by a power law; here it is fixed.
With `power` p each part has the weight of the paper's code, L / sg(L + offset)^p, where L is the mean square of the
part's error in the velocity. That code has half of the gradient of the consistency part: its share of 0.75 flow
matching is `flow_matching` = 6/7 here.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mfdiag.estimators._arguments import require, with_arguments
from mfdiag.estimators._base import Estimator, Needs, squared_norm

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import DifferentiableNetwork, Fields

__all__ = ["ESTIMATOR"]


def loss(
    fields: Fields, network: DifferentiableNetwork, ratio: float, flow_matching: float, power: float, offset: float
) -> Tensor:
    # arXiv 2512.15657: |f(x_t,t,s) - sg f(x_l,l,s)|^2 / ((t-l)(t-s)) with t-l = ratio (t-s), x_l = x_t - (t-l) v_c.
    # In terms of u the difference is (t-s) (u - ratio v_c - (1-ratio) u(x_l,s,l)) (docs/theory.md#family-losses).
    length = ratio * fields.gap
    later = fields.average_velocity(fields.x - length * fields.v_c, fields.r, fields.t - length)
    difference = network(fields.x, fields.r, fields.t) - ratio * fields.v_c - (1 - ratio) * later
    velocity = squared_norm(network(fields.x, fields.t, fields.t) - fields.v_c)
    consistency = squared_norm(difference) / ratio
    if power:
        dim = fields.u[0].numel()
        velocity = velocity * (velocity.detach() / dim + offset) ** -power
        consistency = consistency * (consistency.detach() / (ratio * dim) + offset) ** -power
    return flow_matching * velocity + (1 - flow_matching) * consistency


def build(name: str, ratio: float, flow_matching: float, power: float, offset: float) -> Estimator:
    require(0 < ratio <= 1, name, "ratio must be above 0 and at most 1")
    require(0 <= flow_matching <= 1, name, "flow_matching must be between 0 and 1")
    require(power >= 0, name, "power must not be below 0")
    require(offset > 0, name, "offset must be above 0")
    return Estimator(
        name,
        "SoFlow: solution consistency and flow matching: soflow:[ratio=0.002],"
        "[flow_matching=0.75],[power=0],[offset=0.01]",
        "arXiv 2512.15657",
        "lambda |u(x_t,t,t) - v_c|^2 + (1-lambda) |u - rho v_c - (1-rho) sg u(x_l,r,l)|^2 / rho, "
        "x_l = x_t - (t-l) v_c, t-l = rho (t-r)",
        needs=Needs(trained=2, forwards=1),
        loss=partial(loss, ratio=ratio, flow_matching=flow_matching, power=power, offset=offset),
    )


ESTIMATOR = with_arguments("soflow", {"ratio": 0.002, "flow_matching": 0.75, "power": 0.0, "offset": 0.01}, build)
