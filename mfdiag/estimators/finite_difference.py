"""MeanFlow with a central difference along the path in place of the derivative: finite_difference:step."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mfdiag.estimators._arguments import require, with_arguments
from mfdiag.estimators._base import Estimator, Needs

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields.fields import Fields

__all__ = ["ESTIMATOR"]


def residual(fields: Fields, step: float) -> Tensor:
    # du/dx v_c + du/dt = [u(x_t + h v_c, r, t + h) - u(x_t - h v_c, r, t - h)] / 2h + O(h^2). Papers leave the ends
    # open: here both times stay inside [r, 1], so that the difference is one-sided near them; at r = t its factor is 0
    low, high = (fields.t - step).maximum(fields.r), (fields.t + step).clamp_max(1)
    ends = [fields.velocity(fields.x + (s - fields.t) * fields.v_c, fields.r, s) for s in (low, high)]
    return fields.u + fields.gap * (ends[1] - ends[0]) / (high - low).clamp_min(1e-12) - fields.v_c


def make(name: str, step: float) -> Estimator:
    require(0 < step <= 0.5, name, "step must be above 0 and at most 0.5")
    return Estimator(
        name,
        "MeanFlow with a central difference instead of a derivative: finite_difference:[step=0.005]",
        "MF-RAE; FastGen",
        "u + (t-r) [u(x_t + h v_c,r,t+h) - u(x_t - h v_c,r,t-h)]/(2h) - v_c",
        partial(residual, step=step),
        needs=Needs(forwards=2),
    )


ESTIMATOR = with_arguments("finite_difference", {"step": 0.005}, make)
