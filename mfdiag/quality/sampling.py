"""Samples of a model of the average velocity, in n steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["sample"]


@torch.no_grad()
def sample(velocity: Callable[..., Tensor], noise: Tensor, nfe: int = 1, labels: Tensor | None = None) -> Tensor:
    """Samples [n, *shape] from `noise` [n, *shape] at t = 1 in `nfe` equal steps to t = 0.

    `velocity` is u(x [n, *shape], r [n], t [n], labels [n] or None) -> [n, *shape].
    """
    x = noise
    for step in range(nfe):
        t, r = 1 - step / nfe, 1 - (step + 1) / nfe
        start, end = (torch.full(x.shape[:1], time, dtype=x.dtype, device=x.device) for time in (r, t))
        x = x - (t - r) * velocity(x, start, end, labels)  # arXiv 2505.13447, equation 12: x_r = x_t - (t-r) u
    return x
