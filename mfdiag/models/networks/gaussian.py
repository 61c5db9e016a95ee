"""The exact average velocity of Gaussian data: a model whose ground truth is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mfdiag.errors import InputError

__all__ = ["GaussianAverageVelocity"]


class GaussianAverageVelocity(nn.Module):
    """u(x, r, t) for data N(mean, std^2 I) and noise N(0, I) on the linear path (docs/theory.md#gaussian-truth).

    `mean` is one number or a nested list of shape `shape`; `std` is one number above 0. Both are parameters of the
    module, so their gradients exist; the parameter `mean` has shape [*shape].

    Raises:
        InputError: If `std` is not above 0, or the shape of `mean` is not `shape`.
    """

    def __init__(self, mean: float | Sequence[float] | Tensor = 0.0, std: float = 0.5, shape: Sequence[int] = (2,)):
        super().__init__()
        if not std > 0:
            raise InputError(f"GaussianAverageVelocity needs std above 0, but got {std}; pass a positive std.")
        value = torch.as_tensor(mean, dtype=torch.get_default_dtype())
        if value.ndim and value.shape != tuple(shape):
            raise InputError(
                f"GaussianAverageVelocity needs a mean that is one number or of shape {list(shape)}, but got shape "
                f"{list(value.shape)}; make mean and shape agree."
            )
        self.mean = nn.Parameter(value.expand(tuple(shape)).clone())
        self.std = nn.Parameter(torch.tensor(float(std)))

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Average velocity u, also exact at r = t.

        Args:
            x: Points x_t [n, *shape].
            r: Times r [n] in [0, 1], the other end of the interval.
            t: Times t [n] in [0, 1] of the points.
            y: Labels; they are ignored.

        Returns:
            u, shaped as x.
        """
        column = (-1, *[1] * (x.ndim - 1))
        r, t = r.reshape(column), t.reshape(column)
        variance = self.std**2
        s_r = ((1 - r) ** 2 * variance + r**2).sqrt()
        s_t = ((1 - t) ** 2 * variance + t**2).sqrt()
        # x - x_r = (1 - s_r / s_t) (x - (1-t) m) - (t-r) m, where
        # 1 - s_r / s_t = (s_t^2 - s_r^2) / (s_t (s_t + s_r)) and s_t^2 - s_r^2 = (t-r) [(t+r) - s^2 (2-t-r)].
        # The factor t - r of u = (x - x_r) / (t - r) cancels, so nothing is divided by it.
        slope = ((t + r) - variance * (2 - t - r)) / (s_t * (s_t + s_r))
        return slope * (x - (1 - t) * self.mean) - self.mean
