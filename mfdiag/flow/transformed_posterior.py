"""Posteriors on other paths and from other sources, by a change of variables (docs/theory.md#path-change)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mfdiag.flow.paths import Path
from mfdiag.flow.posterior import Posterior, PosteriorVelocity
from mfdiag.flow.sources import Components

__all__ = ["TransformedPosterior"]


class TransformedPosterior:
    """The posterior of v_c on `path` with a Gaussian mixture as source.

    `base` is the posterior on the linear path from N(0, I). `components` maps labels [n] (or None) to the source's
    distribution. x_0 and x_1 are independent given the label. Within component k, x_1 = m + c z with z ~ N(0, I), so
    x_t = a x_0 + s m + s c z with a = alpha(t) and s = sigma(t).
    """

    def __init__(self, base: Posterior, path: Path, components: Callable[[Tensor | None], Components]) -> None:
        self.base, self.path, self.components = base, path, components
        self.width = base.width + 1

    def __call__(self, x_t: Tensor, t: Tensor, uniforms: Tensor, labels: Tensor | None = None) -> PosteriorVelocity:
        weights, means, stds = (torch.as_tensor(part, dtype=torch.float64) for part in self.components(labels))
        by_component = [
            self._within_component(x_t.double(), t.double(), uniforms[:, 1:], labels, means[:, k], stds[:, k])
            for k in range(len(weights))
        ]
        log_evidence = weights.log() + torch.stack([part.log_density for part in by_component], dim=1)
        weight = torch.softmax(log_evidence, dim=1).T.view(-1, len(x_t), *[1] * (x_t.ndim - 1))  # [K, n, 1...]
        mean_k, variance_k, draw_k = (torch.stack([part[j] for part in by_component]) for j in range(3))
        mean = (weight * mean_k).sum(0)
        variance = (weight * (variance_k + (mean_k - mean) ** 2)).sum(0)
        cumulative = weight.flatten(1).T.cumsum(1)
        component = torch.searchsorted(cumulative, uniforms[:, :1].double().contiguous())
        component = component.clamp_max(len(weights) - 1)[:, 0]
        draw = draw_k[component, torch.arange(len(x_t))]
        return PosteriorVelocity(mean, variance, draw, log_evidence.logsumexp(1))

    def _within_component(
        self, x_t: Tensor, t: Tensor, uniforms: Tensor, labels: Tensor | None, m: Tensor, c: Tensor
    ) -> PosteriorVelocity:
        """The posterior within a component (m [n or 1, *shape], c [n or 1]). The log density is that of x_t."""
        column = (-1, *[1] * (x_t.ndim - 1))
        a, s, (da, ds) = self.path.alpha(t), self.path.sigma(t), self.path.rates(t)
        # Let q = a + s c and tau = s c / q. Then y = (x_t - s m) / q = (1 - tau) x_0 + tau z is the point of the linear
        # path at time tau.
        q = a + s * c
        tau = s * c / q
        y = (x_t - s.view(column) * m) / q.view(column)
        w = self.base(y, tau, uniforms, labels)
        # w = z - x_0 gives x_0 = y - tau w and z = y + (1 - tau) w, hence v_c = a' x_0 + s' (m + c z), affine in w:
        slope = (ds * c * (1 - tau) - da * tau).view(column)
        shift = ds.view(column) * m + (da + ds * c).view(column) * y
        dim = x_t[0].numel()
        return PosteriorVelocity(
            shift + slope * w.mean, slope**2 * w.variance, shift + slope * w.draw, w.log_density - dim * q.log()
        )
