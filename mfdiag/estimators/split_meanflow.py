"""SplitMeanFlow: the average velocity over [r,t] from those over its two parts, without a derivative."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.estimators._base import Estimator, Needs
from mfdiag.estimators._composition import composition_residual

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import Fields

__all__ = ["ESTIMATOR"]


def residual(fields: Fields) -> Tensor:
    # arXiv 2507.16884: (t-r) u(x_t,r,t) = (s-r) u(x_s,r,s) + (t-s) u(x_t,s,t) with x_s = x_t - (t-s) u(x_t,s,t), the
    # right side under stop-gradient, and flow matching at r = t; s = (1-lambda) t + lambda r with lambda uniform
    return composition_residual(fields, 1 - fields.uniform("split"))


ESTIMATOR = Estimator(
    "split_meanflow",
    "SplitMeanFlow: two parts of the interval as target, split at random",
    "arXiv 2507.16884",
    "u - [(s-r) u(x_s,r,s) + (t-s) u(x_t,s,t)]/(t-r), x_s = x_t - (t-s) u(x_t,s,t); u - v_c at r = t",
    residual,
    needs=Needs(forwards=2, uniform=True),
)
