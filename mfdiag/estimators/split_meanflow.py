"""SplitMeanFlow: the average velocity over [r,t] from those over two parts, without a derivative."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.estimators._base import Estimator, Needs
from mfdiag.estimators._composition import composed

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields.fields import Fields

__all__ = ["ESTIMATOR"]


def residual(fields: Fields) -> Tensor:
    # arXiv 2507.16884: (t-r) u(x_t,r,t) = (s-r) u(x_s,r,s) + (t-s) u(x_t,s,t) with x_s = x_t - (t-s) u(x_t,s,t), the
    # right-hand side under stop-gradient, flow matching where r = t; s = (1-lambda) t + lambda r, lambda uniform
    return composed(fields, 1 - fields.uniform("split"))


ESTIMATOR = Estimator(
    "split_meanflow",
    "SplitMeanFlow: two parts of the interval as target, split at random",
    "arXiv 2507.16884",
    "u - [(s-r) u(x_s,r,s) + (t-s) u(x_t,s,t)]/(t-r), x_s = x_t - (t-s) u(x_t,s,t); u - v_c at r = t",
    residual,
    needs=Needs(forwards=2),
)
