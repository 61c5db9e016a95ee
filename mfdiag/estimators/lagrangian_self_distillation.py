"""Lagrangian self-distillation of a flow map: the end of the interval moves with the network's own velocity there.

The velocity at the end and the end itself are under stop-gradient, which the paper does for large networks; the
gradient goes through the derivative in r. `terminal_velocity` has the same first part, and its flow matching at x_r.
The paper takes 75 % of a batch for flow matching and the others for the first part, with learned weights; here every
sample enters both, with weight 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.estimators._base import Estimator, Needs, squared_norm

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import DifferentiableNetwork, Fields

__all__ = ["ESTIMATOR"]


def loss(fields: Fields, network: DifferentiableNetwork) -> Tensor:
    # arXiv 2505.18825: the map X(x_t,t,r) = x_t - (t-r) u obeys dX/dr = v(X,r), so |dX/dr - sg u(X,r,r)|^2 with
    # dX/dr = u - (t-r) du/dr, plus flow matching at (x_t,t,t)
    u, du_dr = network.jvp(fields.x, fields.r, fields.t, dr=1.0)
    end = fields.instantaneous_velocity("self", fields.x - fields.gap * u.detach(), fields.r)
    velocity = network(fields.x, fields.t, fields.t)
    return squared_norm(u - fields.gap * du_dr - end) + squared_norm(velocity - fields.v_c)


ESTIMATOR = Estimator(
    "lagrangian_self_distillation",
    "Lagrangian self-distillation of a flow map: derivative in r, flow matching at x_t",
    "arXiv 2505.18825",
    "|u - (t-r) du/dr - sg u(x_t - (t-r) u,r,r)|^2 + |u(x_t,t,t) - v_c|^2",
    needs=Needs(trained=2, trained_jvps=1, forwards=1),
    loss=loss,
    affine=True,
)
