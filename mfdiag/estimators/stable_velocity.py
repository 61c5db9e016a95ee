"""Stable Velocity: the average of several samples' velocities in place of v_c: stable_velocity:references."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mfdiag.estimators._arguments import require, with_arguments
from mfdiag.estimators._base import Estimator, Needs

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields.fields import Fields

__all__ = ["ESTIMATOR"]

_TINY_TIME = 1e-6  # below it no other point can have led to x_t


def residual(fields: Fields, references: int) -> Tensor:
    # arXiv 2602.05435: self-normalised average of the conditional velocities (x_t - x_0^k)/t over a set of points that
    # holds the sample's own, with weights p_t(x_t | x_0^k). Which point of the set led to x_t has just these
    # probabilities, so the average is E[v_c | x_t, set]: unbiased. The paper regresses flow matching on it; here it
    # stands for v_c in both roles of MeanFlow.
    return fields.with_velocity(average_velocity(fields, references)).plane[0]


def average_velocity(fields: Fields, references: int) -> Tensor:
    """E[v_c given x_t and a set of points]: the sample's own x_0 and `references` - 1 further ones, [n, *shape]."""
    import torch

    there = fields.context
    assert there is not None
    t, x, own = fields.t.double().clamp_min(_TINY_TIME), fields.x.double(), there.conditional(fields.v_c).double()
    others, matching = fields.further_data(references - 1)  # [k, n, *shape], [k, n]
    # N(0, I) weighs each point by the x_1 it needs: (x_t - (1-t) x_0^k) / t; the sample's own is x_t + (1-t) v_c
    ends = torch.cat([(x + (1 - t) * own)[None], (x - (1 - t) * others) / t])
    logits = -0.5 * ends.flatten(2).square().sum(2)
    logits[1:].masked_fill_(~matching, -torch.inf)
    velocities = torch.cat([own[None], ends[1:] - others])
    average = torch.einsum("kn,kn...->n...", logits.softmax(0), velocities).to(fields.v_c)
    return there.guidance(fields.x, there.t, average)


def make(name: str, references: int) -> Estimator:
    require(references > 1, name, "references must be at least 2, the sample's own point among them")
    return Estimator(
        name,
        "Stable Velocity: average over several data points for v_c in both roles: stable_velocity:[references=16]",
        "arXiv 2602.05435",
        "MeanFlow with sum_k w_k (x_t - x_0^k)/t for v_c, w = softmax_k log p_t(x_t | x_0^k)",
        partial(residual, references=references),
        needs=Needs(jvps=1, normal=True, pair=True),
        unbiased=True,
    )


ESTIMATOR = with_arguments("stable_velocity", {"references": 16}, make, integers={"references"})
