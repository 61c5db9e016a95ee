"""Progressive self-distillation of a flow map: one step as two, split at random, plus flow matching.

`midpoint=1` splits in the middle. The target is that of `split_meanflow`, or of `shortcut`; those have flow matching at
r = t alone. The paper takes 75 % of a batch for flow matching and the others for the first part, with learned weights;
here every sample enters both, with weight 1.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mfdiag.estimators._arguments import require, with_arguments
from mfdiag.estimators._base import Estimator, Needs, squared_norm
from mfdiag.estimators._composition import composed_velocity

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import DifferentiableNetwork, Fields

__all__ = ["ESTIMATOR"]


def loss(fields: Fields, network: DifferentiableNetwork, midpoint: bool) -> Tensor:
    # arXiv 2505.18825: the map X(x_t,t,r) = x_t - (t-r) u obeys X(x_t,t,r) = X(X(x_t,t,s),s,r); divided by t-r this is
    # |u - sg[a u(x_s,r,s) + (1-a) u(x_t,s,t)]|^2 with s = r + a (t-r) and a uniform, plus flow matching at (x_t,t,t)
    share = 0.5 if midpoint else fields.uniform("split")
    target = composed_velocity(fields, share)
    difference = network(fields.x, fields.r, fields.t) - target
    velocity = network(fields.x, fields.t, fields.t)
    return squared_norm(difference) + squared_norm(velocity - fields.v_c)


def build(name: str, midpoint: float) -> Estimator:
    require(midpoint in (0, 1), name, "midpoint must be 0 or 1")
    return Estimator(
        name,
        "Progressive self-distillation of a flow map: two parts as target: progressive_self_distillation:[midpoint=0]",
        "arXiv 2505.18825",
        "|u - sg[a u(x_s,r,s) + (1-a) u(x_t,s,t)]|^2 + |u(x_t,t,t) - v_c|^2, s = r + a (t-r), "
        "x_s = x_t - (t-s) u(x_t,s,t)",
        needs=Needs(trained=2, forwards=2, uniform=not midpoint),
        loss=partial(loss, midpoint=bool(midpoint)),
        affine=bool(midpoint),
    )


ESTIMATOR = with_arguments("progressive_self_distillation", {"midpoint": 0}, build)
