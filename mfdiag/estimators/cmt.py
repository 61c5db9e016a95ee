"""CMT, consistency mid-training: the target is the chord of a trajectory of a teacher's solver."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mfdiag.estimators._arguments import with_arguments
from mfdiag.estimators._base import Estimator, Needs

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import Fields

__all__ = ["ESTIMATOR"]


def residual(fields: Fields, steps: int) -> Tensor:
    # arXiv 2509.24526: regress u on (x_t - x_r)/(t-r) along a trajectory of a teacher's solver. The paper starts its
    # trajectories from noise and leaves the solver open. Here they start from the sample's x_t, and the solver is
    # Heun's with `steps` equal steps. The chord is the mean slope of the steps; at r = t this is the teacher's
    # velocity.
    x, step = fields.x, fields.gap / steps
    chord = 0 * x
    for k in range(steps):
        start, stop = fields.t - k * step, fields.t - (k + 1) * step
        first = fields.instantaneous_velocity("teacher", x, start)
        second = fields.instantaneous_velocity("teacher", x - step * first, stop.maximum(fields.r))
        slope = (first + second) / 2
        x, chord = x - step * slope, chord + slope / steps
    return fields.u - chord


def build(name: str, steps: int) -> Estimator:
    return Estimator(
        name,
        "CMT: chord of a teacher's trajectory as target, by Heun's method: cmt:[steps=4]",
        "arXiv 2509.24526",
        "u - (x_t - x_r)/(t-r), x_r from x_t by the teacher's solver",
        partial(residual, steps=steps),
        needs=Needs(forwards=2 * steps, networks=("teacher",)),
        affine=True,
    )


ESTIMATOR = with_arguments("cmt", {"steps": 4}, build, integers={"steps"})
