"""Terminal Velocity Matching: the velocity at the end of the interval instead of at its start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.estimators._base import Estimator, Needs, squared

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields.differentiable_network import DifferentiableNetwork
    from mfdiag.fields.fields import Fields

__all__ = ["ESTIMATOR"]


def loss(fields: Fields, network: DifferentiableNetwork) -> Tensor:
    # arXiv 2511.19797: the displacement f(x_t,t,r) = (r-t) u(x_t,r,t) ends at x_t + f, and its speed there should be
    # the velocity of that point: |df/dr - sg u(x_t + f, r, r)|^2 with df/dr = u - (t-r) du/dr, plus flow matching at
    # the point of the sample's own path at r. The gradient goes through the derivative. The paper's weights in time and
    # its EMA for the target are choices left at 1 and at the network itself.
    u, slope = network.along(fields.x, fields.r, fields.t, dr=1.0)
    speed = u - fields.gap * slope
    end = fields.velocity(fields.x - fields.gap * u.detach(), fields.r, fields.r)
    x_r, v_r = fields.path(fields.r)
    return squared(speed - end) + squared(network(x_r, fields.r, fields.r) - v_r)


ESTIMATOR = Estimator(
    "terminal_velocity",
    "Terminal Velocity Matching: derivative in r, flow matching at x_r",
    "arXiv 2511.19797",
    "|u - (t-r) du/dr - sg u(x_t - (t-r) u,r,r)|^2 + |u(x_r,r,r) - v_c|^2",
    needs=Needs(trained=2, trained_jvps=1, forwards=1, pair=True),
    loss=loss,
)
