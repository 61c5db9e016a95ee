"""Dispersive regularization (MP1, DM1): MeanFlow plus a term that spreads hidden features.

The term is the logarithm of the mean over all pairs of a batch, each sample with itself included. Batches are fixed:
samples 0 to 127 are one, and so on. The gradient of a sample is `batch` times the part of the batch's gradient that
goes through its own features, so the mean over a batch is the gradient of its loss. The variance is that of these
parts: it leaves out what a sample does to the parts of the others in its batch
([theory](../theory.md#family-dispersive)).
Distances are per coordinate, as in the code of 2506.09027; MP1 divides them by the largest of the batch and adds the
term for each of several layers. `partners=4` gives every sample that many partners of its own instead of a batch, and
the mean of the logarithms in place of the logarithm of the mean.
"""

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
    fields: Fields,
    network: DifferentiableNetwork,
    coefficient: float,
    temperature: float,
    partners: int,
    batch: int,
) -> Tensor:
    # arXiv 2506.09027, which MP1 (2507.10543) and DM1 add to MeanFlow: lambda log E_ij exp(-|h_i - h_j|^2 / (tau d)).
    # The papers leave open which features h to take; here they come from the middle of the network.
    u, h = network.features(fields.x, fields.r, fields.t)
    if partners:
        spread = own_partners(fields, network, h, temperature, partners)
    else:
        spread = whole_batch(fields, h, temperature, batch)
    return squared_norm(u - (fields.u - fields.plane[0])) + coefficient * spread


def whole_batch(fields: Fields, h: Tensor, temperature: float, batch: int) -> Tensor:
    """log V of the sample's batch, with `batch` times the gradient through the sample's own features.

    Args:
        fields: Fields of n samples.
        h: Their features [n, F], with a gradient.
        temperature: tau.
        batch: Samples of a batch, B.

    Returns:
        The logarithm for each sample [n].
    """
    import torch

    # B^2 V = sum_ij k_ij = (pairs without sample i) + 2 sum_{j != i} k_ij + k_ii, with k_ii = 1
    features, group, slot = fields.batch_features(batch)
    logarithms, rows = [], []
    for g, members in enumerate(features):
        mine = (group == g).nonzero().flatten()
        places = slot[mine]
        others = _kernel(members, members, temperature).fill_diagonal_(1)
        rest = others.sum() - 2 * others[places].sum(1) + 1
        own = _kernel(h[mine], members, temperature)
        is_other = torch.ones_like(own).scatter_(1, places[:, None], 0)
        logarithms.append(((rest + 2 * (own * is_other).sum(1) + 1) / batch**2).log())
        rows.append(mine)
    value = torch.cat(logarithms)[torch.cat(rows).argsort()]
    return value.detach() + batch * (value - value.detach())


def _kernel(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """exp(-|a_i - b_j|^2 / (tau d)), [n, m], of features [n, d] and [m, d]."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return (-squares.clamp_min(0) / (temperature * a.shape[1])).exp()


def own_partners(
    fields: Fields, network: DifferentiableNetwork, h: Tensor, temperature: float, partners: int
) -> Tensor:
    """log mean_j exp(-|h_i - h_j|^2 / (tau d)) over partners of each sample alone, with gradients through both."""
    partner_features = network.features(*fields.other_samples(partners))[1].unflatten(0, (-1, partners))
    distance = (h[:, None] - partner_features).flatten(2).square().mean(2)
    return (-distance / temperature).logsumexp(1) - log(partners)


def build(name: str, coefficient: float, temperature: float, partners: float, batch: int) -> Estimator:
    require(coefficient >= 0, name, "coefficient must be at least 0")
    require(temperature > 0, name, "temperature must be above 0")
    require(partners >= 0 and float(partners).is_integer(), name, "partners must be a whole number, or 0 for a batch")
    require(batch > 1, name, "batch must be at least 2")
    pairs = "mean_j of its own partners" if partners else "mean_ij of its batch"
    return Estimator(
        name,
        "MeanFlow with dispersed features (MP1, DM1): "
        "dispersive:[coefficient=0.5],[temperature=0.5],[partners=0],[batch=128]",
        "arXiv 2507.10543, 2506.09027",
        f"MeanFlow + lambda log {pairs} exp(-|h_i - h_j|^2 / (tau d)), h hidden features",
        needs=Needs(
            jvps=1, others=True
        ),  # in training the others are the rest of the batch, and the features come for free
        loss=partial(loss, coefficient=coefficient, temperature=temperature, partners=int(partners), batch=batch),
    )


ESTIMATOR = with_arguments(
    "dispersive", {"coefficient": 0.5, "temperature": 0.5, "partners": 0, "batch": 128}, build, integers={"batch"}
)
