"""Terminal Velocity Matching: the velocity at the end of the interval instead of at its start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.estimators._base import Estimator, Needs, squared_norm

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import DifferentiableNetwork, Fields

__all__ = ["ESTIMATOR"]


def loss(fields: Fields, network: DifferentiableNetwork) -> Tensor:
    # arXiv 2511.19797: the displacement f(x_t,t,r) = (r-t) u(x_t,r,t) ends at x_t + f, and its velocity there,
    # df/dr = u - (t-r) du/dr, should be that of the end point: |df/dr - sg u(x_t + f,r,r)|^2, plus flow matching at the
    # point of the sample's own path at r (docs/theory.md#family-losses). The gradient goes through the derivative. The
    # paper also weights times and evaluates the target with EMA weights; here the weights are 1, and the target uses
    # the network's own weights.
    u, du_dr = network.jvp(fields.x, fields.r, fields.t, dr=1.0)
    end_velocity = u - fields.gap * du_dr
    target = fields.average_velocity(fields.x - fields.gap * u.detach(), fields.r, fields.r)
    x_r, v_r = fields.path_at(fields.r)
    return squared_norm(end_velocity - target) + squared_norm(network(x_r, fields.r, fields.r) - v_r)


ESTIMATOR = Estimator(
    "terminal_velocity",
    "Terminal Velocity Matching: derivative in r, flow matching at x_r",
    "arXiv 2511.19797",
    "|u - (t-r) du/dr - sg u(x_t - (t-r) u,r,r)|^2 + |u(x_r,r,r) - v_c|^2",
    needs=Needs(trained=2, trained_jvps=1, forwards=1, pair=True),
    loss=loss,
)
