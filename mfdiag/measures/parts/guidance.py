"""What guidance does to the noise: the variance of v_g in parts, and of the gradient with guidance and without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mfdiag.fields.fields import Fields
from mfdiag.gradients.moments import Moments, jackknife, positive_jackknife
from mfdiag.gradients.sample_pass import PassResult
from mfdiag.measures.cells import moments_by_cell
from mfdiag.measures.rows import Rows

if TYPE_CHECKING:
    from mfdiag.measures.plans import EstimatorPlan

__all__ = ["add_guidance", "guidance_parts"]


_SIGNED = ("guided_variance_cross", "guided_variance_between")  # differences, which may come out negative


def guidance_parts(fields: Fields) -> Tensor:
    """The parts of v_g [C, n, *shape]: a v_c, the network's q and, where v is known, a v."""
    assert fields.context is not None and fields.context.guidance_affine is not None
    shift = fields.context.guidance_affine[1]
    parts = [fields.v_c - shift, shift]
    if fields.posterior is not None:
        parts.append(fields.mean_field().v_c - shift)
    return torch.stack(parts)


def add_guidance(rows: Rows, measured: PassResult, plan: EstimatorPlan, by_layer: bool) -> None:
    """Rows of the quantities that there are only under guidance."""
    assert measured.output is not None
    for box, _, moments in moments_by_cell(measured, measured.output):
        for quantity, replicates in _parts(moments, plan.known).items():
            spread = jackknife if quantity in _SIGNED else positive_jackknife
            rows.add(quantity, spread(replicates, moments.count), box, layer="all", estimator=None)
    for box, layer, moments in moments_by_cell(measured, measured.gradient, by_layer):
        for k, (estimator, plain) in enumerate(zip(plan.estimators, plan.unguided, strict=True)):
            own = k * plan.each
            ratio = moments.S[:, 0, own, own] / moments.S[:, 0, plain, plain]
            estimate = positive_jackknife(ratio, moments.count)
            rows.add("guidance_variance_ratio", estimate, box, layer=layer, estimator=estimator.name)


def _parts(moments: Moments, known: bool) -> dict[str, np.ndarray]:
    """Quantity -> replicates [R]."""
    # v_g = a v_c + q: tr Cov v_g = tr Cov(a v_c) + tr Cov q + 2 tr Cov(a v_c, q)
    S = moments.S[:, 0]
    data, network, cross = S[:, 0, 0], S[:, 1, 1], 2 * S[:, 0, 1]
    total = data + network + cross
    found = {
        "guided_variance": total,
        "guided_variance_data": data,
        "guided_variance_network": network,
        "guided_variance_cross": cross,
    }
    if known:
        # given (x_t, t, label) only v_c is random: E[tr Cov(v_g | x_t)] = E|a (v_c - v)|^2; the rest is between points
        Q = moments.Q[:, 0]
        within = Q[:, 0, 0] - 2 * Q[:, 0, 2] + Q[:, 2, 2]
        found |= {"guided_variance_conditional": within, "guided_variance_between": total - within}
    return found
