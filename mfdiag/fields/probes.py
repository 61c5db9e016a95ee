"""Directions along which a Jacobian is measured: the coordinate basis, or random signs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mfdiag.flow.draw import Draws

__all__ = ["FULL_JACOBIAN_DIM", "PROBES", "coordinate_basis", "random_signs"]

FULL_JACOBIAN_DIM = 64  # above it, d passes cost more than everything else: the Jacobian is probed with random signs
PROBES = 8


def coordinate_basis(x: Tensor) -> Tensor:
    """The coordinate basis [d, n, *shape] at each of x [n, *shape]."""
    d = x[0].numel()
    return torch.eye(d, dtype=x.dtype, device=x.device).view(d, 1, *x.shape[1:]).expand(d, *x.shape)


def random_signs(draws: Draws, purpose: str, index: np.ndarray, x: Tensor) -> Tensor:
    """Random signs [PROBES, n, *shape] like x [n, *shape], of the samples `index` [n] for one `purpose`."""
    u = draws.uniforms(purpose, index, PROBES * x[0].numel())
    signs = np.where(u < 0.5, -1.0, 1.0).reshape(len(x), PROBES, *x.shape[1:])
    return torch.as_tensor(signs).to(x).transpose(0, 1).contiguous()
