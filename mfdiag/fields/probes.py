"""Directions along which a Jacobian is measured: the coordinate basis, or random signs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mfdiag.flow.draw import Draws

__all__ = ["DIAGONAL_PROBES", "FULL_JACOBIAN_DIM", "PROBES", "coordinate_basis", "random_signs"]

FULL_JACOBIAN_DIM = 64
"""Largest dimension for which the full Jacobian is computed; above it, d passes would cost more than everything else
and random signs take the place of the basis (docs/theory.md#jacobian-probes)."""

PROBES = 2
"""Random sign vectors for each sample, for tr J and |J|_F^2. Their intervals are mostly the spread over samples, and so
few share the backward passes of the gradients (docs/theory.md#jacobian-probes)."""

DIAGONAL_PROBES = 8
"""The same for squared diagonal entries, whose error falls with the number of pairs of vectors."""


def coordinate_basis(x: Tensor) -> Tensor:
    """The coordinate basis [d, n, *shape], the same at each of x [n, *shape]."""
    d = x[0].numel()
    return torch.eye(d, dtype=x.dtype, device=x.device).view(d, 1, *x.shape[1:]).expand(d, *x.shape)


def random_signs(draws: Draws, purpose: str, index: np.ndarray, x: Tensor, count: int = PROBES) -> Tensor:
    """Draw random signs, which depend on the seed, the sample and the purpose alone.

    Args:
        draws: Gives the random numbers.
        purpose: Name of the random stream; two purposes give independent signs.
        index: Numbers [n] of the samples.
        x: A tensor [n, *shape] of the dtype and device that the signs should have.
        count: Number of vectors for each sample.

    Returns:
        Signs -1 or 1, [count, n, *shape].
    """
    u = draws.uniforms(purpose, index, count * x[0].numel())
    signs = np.where(u < 0.5, -1.0, 1.0).reshape(len(x), count, *x.shape[1:])
    return torch.as_tensor(signs).to(x).transpose(0, 1).contiguous()
