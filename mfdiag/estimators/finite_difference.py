"""MeanFlow with a central difference along the path in place of the derivative.

Both times may lie outside [r, 1], where the network may not have been trained, as in MF-RAE. `clip=1` keeps them
inside, so that the difference is one-sided near r and 1; FastGen does so too, with a step of 0.0001 in float64, but
takes t itself for an end that lies outside.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mfdiag.estimators._arguments import require, with_arguments
from mfdiag.estimators._base import Estimator, Needs

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import Fields

__all__ = ["ESTIMATOR"]

_TINY = 1e-12  # keeps 0/0 away at r = t = 1, where the difference is multiplied by t-r = 0


def residual(fields: Fields, step: float, clip: bool) -> Tensor:
    # MF-RAE and FastGen: du/dx v_c + du/dt = [u(x_t + h v_c, r, t + h) - u(x_t - h v_c, r, t - h)] / 2h + O(h^2)
    low, high = fields.t - step, fields.t + step
    if clip:
        low, high = low.maximum(fields.r), high.clamp_max(1)
    ends = [fields.average_velocity(fields.x + (s - fields.t) * fields.v_c, fields.r, s) for s in (low, high)]
    return fields.u + fields.gap * (ends[1] - ends[0]) / (high - low).clamp_min(_TINY) - fields.v_c


def build(name: str, step: float, clip: float) -> Estimator:
    require(0 < step <= 0.5, name, "step must be above 0 and at most 0.5")
    require(clip in (0, 1), name, "clip must be 0 or 1")
    return Estimator(
        name,
        "MeanFlow with a central difference instead of a derivative: finite_difference:[step=0.005],[clip=0]",
        "MF-RAE; FastGen",
        "u + (t-r) [u(x_t + h v_c,r,t+h) - u(x_t - h v_c,r,t-h)]/(2h) - v_c",
        partial(residual, step=step, clip=bool(clip)),
        needs=Needs(forwards=2),
    )


ESTIMATOR = with_arguments("finite_difference", {"step": 0.005, "clip": 0}, build)
