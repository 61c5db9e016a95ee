"""Restricted MeanFlow: MeanFlow on intervals of bounded length: restricted_meanflow:bound."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mfdiag.estimators._arguments import require, with_arguments
from mfdiag.estimators._base import Estimator, Needs, squared

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields.differentiable_network import DifferentiableNetwork
    from mfdiag.fields.fields import Fields

__all__ = ["ESTIMATOR"]


def loss(fields: Fields, network: DifferentiableNetwork, bound: float) -> Tensor:
    # arXiv 2602.05449 (DisCa): MeanFlow's loss with t-r at most `bound`. How pairs are brought there is a choice of the
    # sampler; here the sample's own interval shrinks by that factor, r' = t - bound (t-r), which keeps the shape of its
    # law and leaves MeanFlow at bound 1
    r = fields.t - bound * fields.gap
    target = fields.v_c - bound * fields.gap * fields.derivative(r)
    return squared(network(fields.x, r, fields.t) - target)


def make(name: str, bound: float) -> Estimator:
    require(0 < bound <= 1, name, "bound must be above 0 and at most 1")
    return Estimator(
        name,
        "Restricted MeanFlow: intervals shrunk to at most a bound: restricted_meanflow:[bound=0.5]",
        "arXiv 2602.05449",
        "|u(x_t,r',t) + (t-r') sg[du/dx v_c + du/dt] - v_c|^2, r' = t - bound (t-r)",
        needs=Needs(jvps=1),
        loss=partial(loss, bound=bound),
        affine=True,
    )


ESTIMATOR = with_arguments("restricted_meanflow", {"bound": 0.5}, make)
