"""FACM, flow-anchored consistency: a clipped consistency target at r = 0, with flow matching as the anchor.

The sample's own r is not used. `teacher=1` distills: a teacher's velocity takes the place of v_c in both parts. The
paper's means over coordinates are sums here, d times as large, as in every other loss of this list. The weight of the
consistency part is the paper's, and comes in addition to `--weighting`.
"""

from __future__ import annotations

from functools import partial
from math import pi
from typing import TYPE_CHECKING

from mfdiag.estimators._arguments import require, with_arguments
from mfdiag.estimators._base import Estimator, Needs, squared_norm

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import DifferentiableNetwork, Fields

__all__ = ["ESTIMATOR"]

_OFFSET = 1e-3  # of the mean squared error in the weight L / sg(L + c)^0.5 of the consistency part


def loss(fields: Fields, network: DifferentiableNetwork, power: float, teacher: bool) -> Tensor:
    # arXiv 2507.03738 and its code, where data is at time 1, so that its t is 1-t here. The anchor is the squared error
    # plus 1 - cosine over channels. The consistency target is u - a clip(g) with a = 1 - (1-t)^p and
    # g = u - v + t (du/dx v + du/dt) at (x_t,0,t); its part of the loss has the weight cos(pi (1-t)/2) = sin(pi t/2).
    from torch.nn.functional import cosine_similarity

    velocity = fields.instantaneous_velocity("teacher", fields.x, fields.t) if teacher else fields.v_c
    zero, dim = 0 * fields.t, fields.x[0].numel()
    u, anchor = network(fields.x, zero, fields.t), network(fields.x, fields.t, fields.t)
    tangent = u.detach() - velocity + fields.t * fields.derivative_at(zero, velocity)
    clipped = (1 - (1 - fields.t) ** power) * tangent.clamp(-1, 1)
    error = squared_norm(u - u.detach() + clipped) / dim
    consistency = error / (error + _OFFSET).detach().sqrt() * (pi / 2 * fields.t).sin().flatten()
    cosine = (1 - cosine_similarity(anchor, velocity, dim=1)).flatten(1 if anchor.ndim > 2 else 0)
    return squared_norm(anchor - velocity) + dim * (cosine if cosine.ndim == 1 else cosine.mean(1)) + dim * consistency


def build(name: str, power: float, teacher: float) -> Estimator:
    require(power > 0, name, "power must be above 0")
    require(teacher in (0, 1), name, "teacher must be 0 or 1")
    distilled = teacher == 1
    return Estimator(
        name,
        "FACM: clipped consistency target at r = 0 anchored by flow matching: facm:[power=0.5],[teacher=0]",
        "arXiv 2507.03738",
        "|u(x_t,t,t) - v|^2 + d mean(1 - cos(u(x_t,t,t), v)) + d sin(pi t/2) L/sg(L + 1e-3)^0.5, "
        "L = |u - sg(u - (1-(1-t)^p) clip(g,-1,1))|^2/d, g = u - v + t [du/dx v + du/dt] at (x_t,0,t), v = v_c",
        needs=Needs(trained=2, jvps=1, forwards=int(distilled), networks=("teacher",) if distilled else ()),
        loss=partial(loss, power=power, teacher=distilled),
        alternative="facm:teacher=0" if distilled else "",
    )


ESTIMATOR = with_arguments("facm", {"power": 0.5, "teacher": 0}, build)
