"""MeanFlow with a central difference along the path in place of the derivative."""

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


def residual(fields: Fields, step: float) -> Tensor:
    # MF-RAE and FastGen: du/dx v_c + du/dt = [u(x_t + h v_c, r, t + h) - u(x_t - h v_c, r, t - h)] / 2h + O(h^2). They
    # leave open what happens near the ends. Here both times stay in [r, 1], so near r and 1 the difference is
    # one-sided.
    low, high = (fields.t - step).maximum(fields.r), (fields.t + step).clamp_max(1)
    ends = [fields.average_velocity(fields.x + (s - fields.t) * fields.v_c, fields.r, s) for s in (low, high)]
    return fields.u + fields.gap * (ends[1] - ends[0]) / (high - low).clamp_min(_TINY) - fields.v_c


def build(name: str, step: float) -> Estimator:
    require(0 < step <= 0.5, name, "step must be above 0 and at most 0.5")
    return Estimator(
        name,
        "MeanFlow with a central difference instead of a derivative: finite_difference:[step=0.005]",
        "MF-RAE; FastGen",
        "u + (t-r) [u(x_t + h v_c,r,t+h) - u(x_t - h v_c,r,t-h)]/(2h) - v_c",
        partial(residual, step=step),
        needs=Needs(forwards=2),
    )


ESTIMATOR = with_arguments("finite_difference", {"step": 0.005}, build)
