"""Align Your Flow, Eulerian map distillation: a teacher's velocity in both roles, and a normalized tangent.

Without normalization, and with `warmup` 1, this is `teacher`. The paper raises `warmup` during training and stops at
0.99. Its teacher may be autoguided: pass the guided network as the teacher.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mfdiag.estimators._arguments import require, with_arguments
from mfdiag.estimators._base import Estimator, Needs
from mfdiag.estimators._tangents import normalized_tangent

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import Fields

__all__ = ["ESTIMATOR"]


def residual(fields: Fields, constant: float, warmup: float) -> Tensor:
    # arXiv 2506.14603 (AYF-EMD): the gradient of sign(t-s) <f(x_t,t,s), sg df/dt> along the teacher's path, s for r and
    # f = x_t - (t-r) u. With df/dt = v_teacher - u - (t-r) (du/dx v_teacher + du/dt) = -g it is that of regressing u on
    # u - g; the algorithm replaces g by g / (|g| + c) and multiplies the derivative by the warm-up's factor.
    velocity = fields.instantaneous_velocity("teacher", fields.x, fields.t)
    tangent = fields.u - velocity + warmup * fields.gap * fields.derivative_at(fields.r, velocity)
    return normalized_tangent(tangent, constant)


def build(name: str, constant: float, warmup: float) -> Estimator:
    require(constant > 0, name, "constant must be above 0")
    require(0 <= warmup <= 1, name, "warmup must be between 0 and 1")
    return Estimator(
        name,
        "Align Your Flow, Eulerian map distillation from a teacher: eulerian_distillation:[constant=0.1],[warmup=0.99]",
        "arXiv 2506.14603",
        "g/(|g| + c), g = u - v_teacher + w (t-r) [du/dx v_teacher + du/dt]",
        partial(residual, constant=constant, warmup=warmup),
        needs=Needs(forwards=1, jvps=1, networks=("teacher",)),
        affine=True,
    )


ESTIMATOR = with_arguments("eulerian_distillation", {"constant": 0.1, "warmup": 0.99}, build)
