"""Exact posterior of v_c = x_1 - x_0 given x_t for data with stored moments: x_0 is a mixture of N Gaussians.

Each component (m_j, s_j) has a closed form, with diagonal covariances (docs/theory.md#mixture-posterior). The moments
are read one tile at a time, in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfdiag.flow.data.scaling import LatentMoments
from mfdiag.flow.posterior import TINY_TIME, PosteriorVelocity, match_labels

__all__ = ["MomentsPosterior"]

_TILE = 2**16  # numbers of means held together, and as many of variances: what the cache of a core holds
_LOGITS = 2**23  # logits held together
_NEGLIGIBLE = 1e-30  # the sum of 1e13 such weights is below float64's last digit


class MomentsPosterior:
    """The posterior under x_0 ~ (1/N) sum_j N(m_j, diag s_j^2): weights p(x_t | j), and a Gaussian for each j.

    On the linear path from N(0, I), with y = x_t - (1-t) m_j and S = (1-t)^2 s_j^2 + t^2:
    x_t | j ~ N((1-t) m_j, S) and v_c | x_t, j ~ N((t - (1-t) s_j^2) / S y - m_j, s_j^2 / S).
    A component costs 4 to 8 times as much as a point of `FinitePosterior`: S differs between all samples and
    components, so the logits are not a matrix product.
    """

    def __init__(self, moments: LatentMoments, labels: Tensor | None = None, *, tile: int | None = None) -> None:
        dim = math.prod(moments.shape[1:])
        self.moments, self.labels, self.tile, self.width = moments, labels, tile or max(1, _TILE // dim), 1 + dim

    def __call__(self, x_t: Tensor, t: Tensor, uniforms: Tensor, labels: Tensor | None = None) -> PosteriorVelocity:
        time, x = t.double().clamp_min(TINY_TIME), x_t.double().flatten(1)
        mean, variance, draw = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        log_density = torch.empty_like(time)
        for candidates, rows in match_labels(self.labels, labels, len(self.moments), len(x)):
            for part in rows.split(max(1, _LOGITS // len(candidates))):
                velocity = self._posterior_over(candidates, x[part], time[part], uniforms[part].double())
                mean[part], variance[part], draw[part], log_density[part] = velocity
        shape = x_t.shape
        return PosteriorVelocity(mean.view(shape), variance.view(shape), draw.view(shape), log_density)

    def _read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """m and s^2, each [len(rows), d]."""
        mean, std = (torch.as_tensor(part).flatten(1) for part in self.moments[rows.numpy()])
        return mean, std.square()

    def _posterior_over(
        self, candidates: Tensor, x: Tensor, t: Tensor, u: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean, variance and one draw of v_c over the components `candidates`, each [n, d]; log density [n]."""
        tiles = candidates.split(self.tile)
        logits = torch.cat([_logits(*self._read(tile), x, t) for tile in tiles], dim=1)
        log_sum = logits.logsumexp(1)
        weights = (logits - log_sum[:, None]).exp_()
        weights[weights < _NEGLIGIBLE] = 0
        mean, second = torch.zeros_like(x), torch.zeros_like(x)
        for tile, weight in zip(tiles, weights.split(self.tile, dim=1), strict=True):
            needed = weight.any(dim=0)
            if needed.any():
                m, s2 = self._read(tile[needed])
                for n, w in enumerate(weight[:, needed]):
                    v, spread = _velocity(m[w > 0], s2[w > 0], x[n], t[n])
                    mean[n] += w[w > 0] @ v
                    second[n] += w[w > 0] @ (v.square() + spread)
        component = torch.searchsorted(weights.cumsum(1), u[:, :1].contiguous()).clamp_max(len(candidates) - 1)[:, 0]
        v, spread = _velocity(*self._read(candidates[component]), x, t[:, None])
        draw = v + spread.sqrt() * torch.special.ndtri(u[:, 1:])
        return mean, (second - mean.square()).clamp_min(0), draw, log_sum


def _logits(m: Tensor, s2: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """log p(x_t | j) up to a constant [n, N], one sample at a time."""
    logits = torch.empty(len(x), len(m), dtype=torch.float64)
    for n, time in enumerate(t):
        spread = (1 - time) ** 2 * s2 + time**2
        logits[n] = -0.5 * ((x[n] - (1 - time) * m).square_().div_(spread) + spread.log()).sum(1)
    return logits


def _velocity(m: Tensor, s2: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of v_c given x_t and the component."""
    spread = (1 - t) ** 2 * s2 + t**2
    return (t - (1 - t) * s2) / spread * (x - (1 - t) * m) - m, s2 / spread
