"""Shortcut models: one step from two of half its size, whose sizes are powers of two, by averaged weights.

The longest step 1, 1/2, ..., 2/steps that fits into the sample's interval [r, t] starts at t; below 2/steps flow
matching takes its place. Halves of size 1/steps are evaluated at r = t, as in the paper. The paper also takes t from
multiples of the step, and 75 % of a batch for flow matching: `--times` decides both here. `steps=0` halves the sample's
own interval, whatever its length, and `ema=0` evaluates the target with the network's own weights: `shortcut:0,0` needs
no averaged weights, and `mfdiag variance` measures it too.
"""

from __future__ import annotations

from functools import partial
from math import log2
from typing import TYPE_CHECKING

from mfdiag.estimators._arguments import require, with_arguments
from mfdiag.estimators._base import Estimator, Needs, squared_norm
from mfdiag.estimators._composition import composition_residual

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import DifferentiableNetwork, Fields

__all__ = ["ESTIMATOR"]


def loss(fields: Fields, network: DifferentiableNetwork, steps: int, weights: str) -> Tensor:
    # arXiv 2410.12557: regress s(x,t,2d) on sg[s(x,t,d)/2 + s(x',t+d,d)/2] with d a power of two from 1/steps on and
    # averaged weights in the target, where s(.,.,1/steps) stands for s(.,.,0); and on flow matching's target at 2d = 0
    size = fields.gap.log2().floor().exp2()
    is_step = size >= 2 / steps
    half = size.where(is_step, 0 * size) / 2
    r, s = fields.t - 2 * half, fields.t - half
    is_short = half <= 1 / steps
    late = fields.average_velocity(fields.x, s.where(~is_short, fields.t), fields.t, weights)
    early = fields.average_velocity(fields.x - half * late, r.where(~is_short, s), s, weights)
    target = ((late + early) / 2).where(is_step, fields.v_c)
    return squared_norm(network(fields.x, r, fields.t) - target)


def build(name: str, steps: float, ema: float) -> Estimator:
    require(steps == 0 or (steps >= 2 and log2(steps).is_integer()), name, "steps must be 0 or a power of two above 1")
    require(ema in (0, 1), name, "ema must be 0 or 1")
    weights = "ema" if ema else "self"
    own = steps == 0
    return Estimator(
        name,
        "Shortcut models: two half steps as target: shortcut:[steps=128],[ema=1]",
        "arXiv 2410.12557",
        ("{}" if own else "|{}|^2").format("u - [u'(x_s,r,s) + u'(x_t,s,t)]/2")
        + ", s = (r+t)/2, x_s = x_t - (t-s) u'(x_t,s,t), u - v_c at r = t, "
        + ("u' = u_ema" if ema else "u' = u")
        + ("" if own else ", with t-r lowered to a power of two of at least 2/steps, or 0"),
        residual=partial(composition_residual, share=0.5, network=weights) if own else None,
        needs=Needs(forwards=2, networks=("ema",) if ema else ()),
        loss=None if own else partial(loss, steps=int(steps), weights=weights),
        affine=True,
        alternative=f"shortcut:{steps:g},0" if ema else "",
    )


ESTIMATOR = with_arguments("shortcut", {"steps": 128, "ema": 1}, build)
