"""What guidance does to the noise: the variance of v_g in parts, and of the gradient with guidance and without."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mfdiag.fields.fields import Fields
from mfdiag.gradients.moments import Moments

__all__ = ["SIGNED", "guidance_parts", "guidance_statistics"]

SIGNED = ("guided_variance_cross", "guided_variance_between")
"""Differences, which may be negative."""


def guidance_parts(fields: Fields) -> Tensor:
    """The parts of v_g [C, n, *shape]: a v_c, the network's q and, where v is known, a v."""
    assert fields.context is not None and fields.context.guidance_affine is not None
    shift = fields.context.guidance_affine[1]
    parts = [fields.v_c - shift, shift]
    if fields.posterior is not None:
        parts.append(fields.mean_field().v_c - shift)
    return torch.stack(parts)


def guidance_statistics(moments: Moments, posterior_known: bool) -> dict[str, np.ndarray]:
    """Quantity -> replicates [R], from moments of `guidance_parts`; `posterior_known` says whether v is among them."""
    # v_g = a v_c + q: tr Cov v_g = tr Cov(a v_c) + tr Cov q + 2 tr Cov(a v_c, q)
    S = moments.S[:, 0]
    data, network, cross = S[:, 0, 0], S[:, 1, 1], 2 * S[:, 0, 1]
    total = data + network + cross
    statistics = {
        "guided_variance": total,
        "guided_variance_data": data,
        "guided_variance_network": network,
        "guided_variance_cross": cross,
    }
    if posterior_known:
        # given (x_t, t, label) only v_c is random: E[tr Cov(v_g | x_t)] = E|a (v_c - v)|^2; the rest is between points
        Q = moments.Q[:, 0]
        within = Q[:, 0, 0] - 2 * Q[:, 0, 2] + Q[:, 2, 2]
        statistics |= {"guided_variance_conditional": within, "guided_variance_between": total - within}
    return statistics
