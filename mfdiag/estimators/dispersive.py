"""Dispersive regularization (MP1, DM1): MeanFlow plus a term that spreads hidden features."""

from __future__ import annotations

from functools import partial
from math import log
from typing import TYPE_CHECKING

from mfdiag.estimators._arguments import require, with_arguments
from mfdiag.estimators._base import Estimator, Needs, squared_norm

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import DifferentiableNetwork, Fields

__all__ = ["ESTIMATOR"]


def loss(
    fields: Fields, network: DifferentiableNetwork, coefficient: float, temperature: float, partners: int
) -> Tensor:
    # arXiv 2506.09027, which MP1 (2507.10543) and DM1 add to MeanFlow: log E_ij exp(-|h_i - h_j|^2 / tau) over the
    # pairs of a batch. A batch has no loss per sample. So here sample i gets its own independent partners and adds
    #     log mean_j exp(-|h_i - h_j|^2 / (tau d))
    # with the gradient through both features. The papers leave open which h to take and how to scale it; here it is the
    # middle of the network, and distances are per coordinate.
    u, h = network.features(fields.x, fields.r, fields.t)
    partner_features = network.features(*fields.other_samples(partners))[1].unflatten(0, (-1, partners))
    distance = (h[:, None] - partner_features).flatten(2).square().mean(2)
    spread = (-distance / temperature).logsumexp(1) - log(partners)
    target = fields.u - fields.plane[0]
    return squared_norm(u - target) + coefficient * spread


def build(name: str, coefficient: float, temperature: float, partners: int) -> Estimator:
    require(coefficient >= 0, name, "coefficient must be at least 0")
    require(temperature > 0, name, "temperature must be above 0")
    return Estimator(
        name,
        "MeanFlow with dispersed features (MP1, DM1): dispersive:[coefficient=0.5],[temperature=0.5],[partners=4]",
        "arXiv 2507.10543, 2506.09027",
        "MeanFlow + lambda log mean_j exp(-|h_i - h_j|^2 / (tau d)), h hidden features",
        needs=Needs(jvps=1),  # in training the partners are the rest of the batch, and the features come for free
        loss=partial(loss, coefficient=coefficient, temperature=temperature, partners=partners),
    )


ESTIMATOR = with_arguments(
    "dispersive", {"coefficient": 0.5, "temperature": 0.5, "partners": 4}, build, integers={"partners"}
)
