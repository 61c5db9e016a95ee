"""CMT, consistency mid-training: the target is the chord of a trajectory of a teacher's solver.

The trajectory starts from the sample's noise x_1, as in the paper, and the network is evaluated on it: Heun's method
with `steps` equal steps from 1 to t, and as many from t to r. The paper leaves the solver open and takes t and r from
the times of its steps. `noise=0` starts from the sample's own x_t instead, which saves the first part; then
`mfdiag variance` measures it too.
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


def chord(fields: Fields, x: Tensor, t: Tensor, r: Tensor, steps: int) -> Tensor:
    """The mean slope of a teacher's trajectory from x at t to r, by Heun's method; its velocity at r = t."""
    step = (t - r) / steps
    mean = 0 * x
    for k in range(steps):
        start, stop = t - k * step, t - (k + 1) * step
        first = fields.instantaneous_velocity("teacher", x, start)
        second = fields.instantaneous_velocity("teacher", x - step * first, stop.maximum(r))
        slope = (first + second) / 2
        x, mean = x - step * slope, mean + slope / steps
    return mean


def residual(fields: Fields, steps: int) -> Tensor:
    # arXiv 2509.24526: regress u on (x_t - x_r)/(t-r) along a trajectory of a teacher's solver
    return fields.u - chord(fields, fields.x, fields.t, fields.r, steps)


def loss(fields: Fields, network: DifferentiableNetwork, steps: int) -> Tensor:
    # the same at the point to which the trajectory leads from noise
    one = 0 * fields.t + 1
    x = fields.path_at(one)[0]
    x = x - (one - fields.t) * chord(fields, x, one, fields.t, steps)
    return squared_norm(network(x, fields.r, fields.t) - chord(fields, x, fields.t, fields.r, steps))


def build(name: str, steps: int, noise: float) -> Estimator:
    require(noise in (0, 1), name, "noise must be 0 or 1")
    from_noise = noise == 1
    return Estimator(
        name,
        "CMT: chord of a teacher's trajectory as target, by Heun's method: cmt:[steps=4],[noise=1]",
        "arXiv 2509.24526",
        "|u(x_t,r,t) - (x_t - x_r)/(t-r)|^2, x_t from x_1 and x_r from x_t by the teacher's solver"
        if from_noise
        else "u - (x_t - x_r)/(t-r), x_r from x_t by the teacher's solver",
        residual=None if from_noise else partial(residual, steps=steps),
        needs=Needs(forwards=2 * steps * (1 + from_noise), networks=("teacher",), pair=from_noise),
        loss=partial(loss, steps=steps) if from_noise else None,
        affine=not from_noise,
    )


ESTIMATOR = with_arguments("cmt", {"steps": 4, "noise": 1}, build, integers={"steps"})
