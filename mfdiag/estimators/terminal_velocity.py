"""Terminal Velocity Matching: the velocity at the end of the interval instead of at its start.

The target is that of averaged weights; `ema=0` takes the network's own, and needs none. The paper averages them for the
target alone, over about 100 steps; the checkpoint's average stands for them here. It also weights times, which has no
part here, and its code draws the time of the flow-matching part on its own instead of taking r.
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


def loss(fields: Fields, network: DifferentiableNetwork, weights: str) -> Tensor:
    # arXiv 2511.19797: the displacement f(x_t,t,r) = (r-t) u(x_t,r,t) ends at x_t + f, and its velocity there,
    # df/dr = u - (t-r) du/dr, should be that of the end point: |df/dr - sg u_ema(x_t + f,r,r)|^2, plus flow matching at
    # the point of the sample's own path at r (docs/theory.md#family-losses). The gradient goes through the derivative.
    u, du_dr = network.jvp(fields.x, fields.r, fields.t, dr=1.0)
    end_velocity = u - fields.gap * du_dr
    target = fields.instantaneous_velocity(weights, fields.x - fields.gap * u.detach(), fields.r)
    x_r, v_r = fields.path_at(fields.r)
    return squared_norm(end_velocity - target) + squared_norm(network(x_r, fields.r, fields.r) - v_r)


def build(name: str, ema: float) -> Estimator:
    require(ema in (0, 1), name, "ema must be 0 or 1")
    return Estimator(
        name,
        "Terminal Velocity Matching: derivative in r, flow matching at x_r: terminal_velocity:[ema=1]",
        "arXiv 2511.19797",
        "|u - (t-r) du/dr - sg u_ema(x_t - (t-r) u,r,r)|^2 + |u(x_r,r,r) - v_c|^2",
        needs=Needs(trained=2, trained_jvps=1, forwards=1, networks=("ema",) if ema else (), pair=True),
        loss=partial(loss, weights="ema" if ema else "self"),
        alternative="terminal_velocity:ema=0" if ema else "",
    )


ESTIMATOR = with_arguments("terminal_velocity", {"ema": 1}, build)
