"""Align Your Flow, Lagrangian map distillation: the end of the interval moves with the teacher's velocity there.

The gradient goes through the step alone, not through the derivative or the end point, as in the paper. The paper's
weight of each (t, r) is 1 here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.estimators._base import Estimator, Needs, squared_norm

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import DifferentiableNetwork, Fields

__all__ = ["ESTIMATOR"]


def loss(fields: Fields, network: DifferentiableNetwork) -> Tensor:
    # arXiv 2506.14603 (AYF-LMD): the gradient of sign(s-t) <f(x_t,t,s), sg[df/ds - v_teacher(f,s)]>, s for r and
    # f = x_t - (t-r) u, so df/dr = u - (t-r) du/dr. Without t-r it is that of regressing u on u - e with e the bracket.
    u, du_dr = network.jvp(fields.x, fields.r, fields.t, dr=1.0)
    end = fields.instantaneous_velocity("teacher", fields.x - fields.gap * u.detach(), fields.r)
    return squared_norm(u - (fields.gap * du_dr.detach() + end))


ESTIMATOR = Estimator(
    "lagrangian_distillation",
    "Align Your Flow, Lagrangian map distillation from a teacher",
    "arXiv 2506.14603",
    "|u - sg[(t-r) du/dr + v_teacher(x_t - (t-r) u,r)]|^2",
    needs=Needs(forwards=1, jvps=1, networks=("teacher",)),
    loss=loss,
    affine=True,
)
