"""Restricted MeanFlow (DisCa): MeanFlow on intervals of bounded length."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mfdiag.estimators._arguments import require, with_arguments
from mfdiag.estimators._base import Estimator, Needs, squared_norm

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import DifferentiableNetwork, Fields

__all__ = ["ESTIMATOR"]


def loss(fields: Fields, network: DifferentiableNetwork, bound: float) -> Tensor:
    # arXiv 2602.05449 (DisCa): MeanFlow's loss with t-r at most `bound`. The paper leaves it to the sampler how to get
    # such pairs. Here the sample's own interval shrinks by the factor `bound`, r' = t - bound (t-r): the distribution
    # of t-r keeps its shape, and bound = 1 is MeanFlow.
    r = fields.t - bound * fields.gap
    target = fields.v_c - bound * fields.gap * fields.jvp_v_c_at(r)
    return squared_norm(network(fields.x, r, fields.t) - target)


def build(name: str, bound: float) -> Estimator:
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


ESTIMATOR = with_arguments("restricted_meanflow", {"bound": 0.5}, build)
