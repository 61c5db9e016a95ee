"""Flow matching alone: the network at r = t regressed on the conditional velocity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.estimators._base import Estimator, squared_norm

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import DifferentiableNetwork, Fields

__all__ = ["ESTIMATOR"]


def loss(fields: Fields, network: DifferentiableNetwork) -> Tensor:
    # arXiv 2210.02747: |u(x_t,t,t) - v_c|^2; the sample's r is not used
    return squared_norm(network(fields.x, fields.t, fields.t) - fields.v_c)


ESTIMATOR = Estimator(
    "flow_matching",
    "flow matching alone, at r = t",
    "arXiv 2210.02747",
    "|u(x_t,t,t) - v_c|^2",
    loss=loss,
    affine=True,
)
