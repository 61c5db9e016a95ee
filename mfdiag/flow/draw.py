"""What is drawn: batches of (x_0, x_1, r, t) whose sample i depends on (seed, i) alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mfdiag.flow.datasets import Data, FiniteData, GaussianData, MixtureData
from mfdiag.flow.posterior import FinitePosterior, MixturePosterior, Posterior, PosteriorVelocity
from mfdiag.flow.seeds import normals, uniforms
from mfdiag.flow.times import TimeSampler

__all__ = ["Batch", "Draws", "posterior_of"]


@dataclass(frozen=True)
class Batch:
    """n samples in float64: x0, x1 [n, *shape]; r, t [n]; labels [n] or None; index [n] their numbers."""

    index: np.ndarray
    x0: Tensor
    x1: Tensor
    r: Tensor
    t: Tensor
    labels: Tensor | None

    @property
    def velocity(self) -> Tensor:
        """Conditional velocity v_c = x_1 - x_0."""
        return self.x1 - self.x0

    @property
    def x_t(self) -> Tensor:
        """The point at time t of the linear path: (1 - t) x_0 + t x_1."""
        time = self.t.view(-1, *[1] * (self.x0.ndim - 1))
        return (1 - time) * self.x0 + time * self.x1


def posterior_of(data: Data) -> Posterior | None:
    """The exact posterior velocity of a data set, or None where it is not known."""
    if isinstance(data, GaussianData):
        return MixturePosterior.gaussian(data.mean, data.std, data.dim)
    if isinstance(data, MixtureData):
        return MixturePosterior.of_covariances(*map(torch.as_tensor, (data.weights, data.means, data.covariances)))
    if isinstance(data, FiniteData):
        labels = None if data.labels is None else torch.as_tensor(data.labels)
        return FinitePosterior(torch.as_tensor(data.points), labels)
    return None


@dataclass(frozen=True)
class Draws:
    """A data set, a time sampler and a seed; the source is N(0, I), the coupling independent."""

    data: Data
    times: TimeSampler
    seed: int
    conditional: bool = True  # hand out labels (the model takes them) or not
    exact: bool = True  # compute the posterior where it is known

    @cached_property
    def posterior(self) -> Posterior | None:
        return posterior_of(self.data) if self.exact else None

    def times_of(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """r, t [n] of the samples `index`."""
        return self.times.sample(uniforms(self.seed, "times", index, self.times.width), index)

    def labels_of(self, index: np.ndarray) -> np.ndarray | None:
        """Labels [n] of the samples `index`, whether or not the model takes them."""
        if not self.data.num_classes:  # nothing to draw a second time
            return None
        return self.data.sample(uniforms(self.seed, "data", index, self.data.width))[1]

    def batch(self, index: np.ndarray) -> Batch:
        """The samples `index` [n]."""
        x0, labels = self.data.sample(uniforms(self.seed, "data", index, self.data.width))
        x1 = normals(self.seed, "noise", index, int(np.prod(self.data.shape))).reshape(x0.shape)
        r, t = self.times_of(index)
        kept = torch.as_tensor(labels) if labels is not None and self.conditional else None
        data, noise, start, end = (torch.as_tensor(a, dtype=torch.float64) for a in (x0, x1, r, t))
        return Batch(index, data, noise, start, end, kept)

    def velocity_posterior(self, batch: Batch) -> PosteriorVelocity | None:
        """Marginal velocity, diagonal of Sigma and one fresh draw of v_c at the batch's x_t; None if unknown."""
        if self.posterior is None:
            return None
        u = uniforms(self.seed, "posterior", batch.index, self.posterior.width)
        return self.posterior(batch.x_t, batch.t, torch.as_tensor(u), batch.labels)
