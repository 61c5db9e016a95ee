"""Stable Velocity: an average of conditional velocities over several data points in place of v_c."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mfdiag.estimators._arguments import require, with_arguments
from mfdiag.estimators._base import Estimator, Needs

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import Fields

__all__ = ["ESTIMATOR", "posterior_average"]

_TINY_TIME = 1e-6  # below it no other data point can have led to x_t


def residual(fields: Fields, references: int) -> Tensor:
    # arXiv 2602.05435: the self-normalized average of (x_t - x_0^k)/t over a set of data points that includes the
    # sample's own, with weights p_t(x_t | x_0^k). It is E[v_c | x_t, set], hence unbiased
    # (docs/theory.md#family-targets). The paper regresses flow matching on it; here it replaces v_c in both roles of
    # MeanFlow.
    return fields.with_v_c(posterior_average(fields, references)).plane[0]


def posterior_average(fields: Fields, references: int) -> Tensor:
    """E[v_c given x_t and a set of data points].

    Args:
        fields: Fields of n samples from a source N(0, I) on the linear path.
        references: Size of the set: the sample's own x_0 and `references` - 1 others.

    Returns:
        The average velocity [n, *shape], guided as v_c is.
    """
    import torch

    context = fields.context
    assert context is not None
    t, x = fields.t.double().clamp_min(_TINY_TIME), fields.x.double()
    own = context.remove_guidance(fields.v_c).double()
    others, matches = fields.other_data(references - 1)  # [k, n, *shape], [k, n]
    # x_0^k leads to x_t from the noise (x_t - (1-t) x_0^k) / t, whose density under N(0, I) gives the weight; for the
    # sample's own point this is x_t + (1-t) v_c
    noise = torch.cat([(x + (1 - t) * own)[None], (x - (1 - t) * others) / t])
    logits = -0.5 * noise.flatten(2).square().sum(2)
    logits[1:].masked_fill_(~matches, -torch.inf)
    velocities = torch.cat([own[None], noise[1:] - others])
    average = torch.einsum("kn,kn...->n...", logits.softmax(0), velocities).to(fields.v_c)
    return context.apply_guidance(fields.x, context.t, average)


def build(name: str, references: int) -> Estimator:
    require(references > 1, name, "references must be at least 2: the sample's own point and another")
    return Estimator(
        name,
        "Stable Velocity: average over several data points for v_c in both roles: stable_velocity:[references=16]",
        "arXiv 2602.05435",
        "MeanFlow with sum_k w_k (x_t - x_0^k)/t for v_c, w = softmax_k log p_t(x_t | x_0^k)",
        partial(residual, references=references),
        needs=Needs(jvps=1, normal=True, pair=True, others=True, same_condition=True),
        unbiased=True,
    )


ESTIMATOR = with_arguments("stable_velocity", {"references": 16}, build, integers={"references"})
