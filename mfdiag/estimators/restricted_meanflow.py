"""Restricted MeanFlow (DisCa): MeanFlow on intervals of bounded length.

A longer interval keeps its end t and gets the length `bound`. The paper draws r uniformly within the bound instead:
`--times restricted:BOUND` does, for every method. `shrink=1` multiplies the length of every interval by the bound, so
that their distribution keeps its shape.
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


def loss(fields: Fields, network: DifferentiableNetwork, bound: float, shrink: bool) -> Tensor:
    # arXiv 2602.05449 (DisCa): MeanFlow's loss with t-r at most `bound`; bound = 1 is MeanFlow
    gap = bound * fields.gap if shrink else fields.gap.clamp_max(bound)
    r = fields.t - gap
    target = fields.v_c - gap * fields.jvp_v_c_at(r)
    return squared_norm(network(fields.x, r, fields.t) - target)


def build(name: str, bound: float, shrink: float) -> Estimator:
    require(0 < bound <= 1, name, "bound must be above 0 and at most 1")
    require(shrink in (0, 1), name, "shrink must be 0 or 1")
    return Estimator(
        name,
        "Restricted MeanFlow: intervals of at most a bound: restricted_meanflow:[bound=0.5],[shrink=0]",
        "arXiv 2602.05449",
        "|u(x_t,r',t) + (t-r') sg[du/dx v_c + du/dt] - v_c|^2, t - r' = "
        + ("bound (t-r)" if shrink else "min(t-r, bound)"),
        needs=Needs(jvps=1),
        loss=partial(loss, bound=bound, shrink=bool(shrink)),
        affine=True,
    )


ESTIMATOR = with_arguments("restricted_meanflow", {"bound": 0.5, "shrink": 0}, build)
