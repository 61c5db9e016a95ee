"""Shortcut models: one step of size t-r from two of half that size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.estimators._base import Estimator, Needs
from mfdiag.estimators._composition import composition_residual

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import Fields

__all__ = ["ESTIMATOR"]


def residual(fields: Fields) -> Tensor:
    # arXiv 2410.12557: regress s(x,t,2d) on sg[s(x,t,d)/2 + s(x',t+d,d)/2], and on flow matching's target at d = 0. The
    # paper draws d from powers of two and evaluates the target with EMA weights. Here d is half the sample's own t-r,
    # and the target uses the network's own weights.
    return composition_residual(fields, 0.5)


ESTIMATOR = Estimator(
    "shortcut",
    "Shortcut models: two half steps as target",
    "arXiv 2410.12557",
    "u - [u(x_s,r,s) + u(x_t,s,t)]/2, s = (r+t)/2, x_s = x_t - (t-s) u(x_t,s,t); u - v_c at r = t",
    residual,
    needs=Needs(forwards=2),
    affine=True,
)
