"""Eulerian self-distillation of a flow map: its value at r does not change along the network's own velocity at t.

The velocity is under stop-gradient. So is the product with du/dx by default, as the paper does for large networks;
`jacobian=1` lets the gradient through it. The paper takes 75 % of a batch for flow matching and the others for the
first part, with learned weights; here every sample enters both, with weight 1.
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


def loss(fields: Fields, network: DifferentiableNetwork, jacobian: bool) -> Tensor:
    # arXiv 2505.18825: the map X(x_t,t,r) = x_t - (t-r) u obeys dX/dt + dX/dx v = 0, so
    # |v - u - (t-r) (du/dt + du/dx v)|^2 with v = sg u(x_t,t,t), plus flow matching at (x_t,t,t)
    velocity = network(fields.x, fields.t, fields.t)
    own = velocity.detach()
    u, derivative = network.jvp(fields.x, fields.r, fields.t, dx=own if jacobian else None, dt=1.0)
    if not jacobian:
        derivative = derivative + fields.derivative_at(fields.r, own, dt=0.0)
    return squared_norm(u + fields.gap * derivative - own) + squared_norm(velocity - fields.v_c)


def build(name: str, jacobian: float) -> Estimator:
    require(jacobian in (0, 1), name, "jacobian must be 0 or 1")
    return Estimator(
        name,
        "Eulerian self-distillation of a flow map: derivative along u(x_t,t,t): "
        "eulerian_self_distillation:[jacobian=0]",
        "arXiv 2505.18825",
        "|u + (t-r) [du/dt + sg(du/dx v)] - v|^2 + |u(x_t,t,t) - v_c|^2, v = sg u(x_t,t,t)",
        needs=Needs(trained=2, trained_jvps=1, jvps=int(not jacobian)),
        loss=partial(loss, jacobian=bool(jacobian)),
        affine=True,
    )


ESTIMATOR = with_arguments("eulerian_self_distillation", {"jacobian": 0}, build)
