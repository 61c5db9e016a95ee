"""Shortcut models: one step of size t-r from two of half that size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.estimators._base import Estimator, Needs
from mfdiag.estimators._composition import composed

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields.fields import Fields

__all__ = ["ESTIMATOR"]


def residual(fields: Fields) -> Tensor:
    # arXiv 2410.12557: s(x,t,2d) regresses on sg[s(x,t,d)/2 + s(x',t+d,d)/2], flow matching at d = 0. The paper draws d
    # from powers of two; here it is half the sample's own t-r, and the target's weights are the network's, not an EMA's
    return composed(fields, 0.5)


ESTIMATOR = Estimator(
    "shortcut",
    "Shortcut models: two half steps as target",
    "arXiv 2410.12557",
    "u - [u(x_s,r,s) + u(x_t,s,t)]/2, s = (r+t)/2, x_s = x_t - (t-s) u(x_t,s,t); u - v_c at r = t",
    residual,
    needs=Needs(forwards=2),
    affine=True,
)
