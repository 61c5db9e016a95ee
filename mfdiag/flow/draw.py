"""What is drawn: batches of (x_0, x_1, r, t) whose sample i depends on (seed, i) alone, or on its coupled group."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mfdiag.flow.couplings import INDEPENDENT, Coupling, Ends
from mfdiag.flow.data.datasets import Data, FiniteData, GaussianData, MixtureData, MomentsData
from mfdiag.flow.guidance import Guidance, Scale
from mfdiag.flow.moments_posterior import MomentsPosterior
from mfdiag.flow.paths import LINEAR, Path
from mfdiag.flow.posterior import FinitePosterior, MixturePosterior, Posterior, PosteriorVelocity
from mfdiag.flow.seeds import uniforms
from mfdiag.flow.sources import Components, GaussianSource, Source
from mfdiag.flow.times import TimeSampler
from mfdiag.flow.transformed_posterior import ReducedPosterior

__all__ = ["Batch", "Draws", "posterior_of", "why_unknown"]


@dataclass(frozen=True)
class Batch:
    """n samples in float64: x0, x1 [n, *shape]; r, t [n]; labels [n] or None; index [n] their numbers.

    `weight` [n] multiplies each sample's loss; None where all weigh 1. Under guidance `dropped` [n] tells the labels
    that were replaced by the null label, and `scale` how strongly each sample is guided.
    """

    index: np.ndarray
    x0: Tensor
    x1: Tensor
    r: Tensor
    t: Tensor
    labels: Tensor | None
    weight: Tensor | None = None
    path: Path = LINEAR
    dropped: Tensor | None = None
    scale: Scale | None = None

    def at(self, time: Tensor) -> Tensor:
        """The points of the path at times [n]."""
        return self.path.point(self.x0, self.x1, time)

    @property
    def velocity(self) -> Tensor:
        """Conditional velocity v_c at time t; x_1 - x_0 on the linear path."""
        return self.path.velocity(self.x0, self.x1, self.t)

    @property
    def x_t(self) -> Tensor:
        """The point at time t; (1 - t) x_0 + t x_1 on the linear path."""
        return self.at(self.t)


def posterior_of(data: Data) -> Posterior | None:
    """The exact posterior velocity on the linear path from N(0, I), or None where it is not known."""
    if isinstance(data, GaussianData):
        return MixturePosterior.gaussian(data.mean, data.std, data.dim)
    if isinstance(data, MixtureData):
        return MixturePosterior.of_covariances(*map(torch.as_tensor, (data.weights, data.means, data.covariances)))
    if isinstance(data, FiniteData):
        labels = None if data.labels is None else torch.as_tensor(data.labels)
        points = torch.as_tensor(data.points) if isinstance(data.points, np.ndarray) else data.points
        return FinitePosterior(points, labels)
    if isinstance(data, MomentsData):
        return MomentsPosterior(data.moments, None if data.labels is None else torch.as_tensor(data.labels))
    return None


def why_unknown(
    data: Data, source: Source, coupling: Coupling, conditional: bool, guidance: Guidance | None = None
) -> str | None:
    """Why the exact posterior velocity of these draws is not known, in words; None where it is, whatever the path."""
    if not isinstance(data, FiniteData | GaussianData | MixtureData | MomentsData):
        return f"the posterior of {data.name} is not known"
    if coupling.dependent:
        return f"under the coupling {coupling.name} x_0 and x_1 depend on each other, and their posterior is not known"
    told = np.zeros(1, np.int64) if conditional and data.num_classes else None
    untold = guidance is not None and guidance.drop > 0
    if source.components(told) is None or (untold and source.components(None) is None):
        return (
            f"the source {source.name} is not a Gaussian mixture given what the model is told, and its posterior is "
            "not known"
        )
    return None


@dataclass(frozen=True)
class Draws:
    """A data set, a time sampler and a seed, with a source (None: N(0, I)), a coupling and a path.

    `streams` begins the names of the random streams, so that training and measuring see different samples. Under
    `guidance` a share of the labels becomes `null`.
    """

    data: Data
    times: TimeSampler
    seed: int
    conditional: bool = True  # hand out labels (the model takes them) or not
    exact: bool = True  # compute the posterior where it is known
    source: Source | None = None
    coupling: Coupling = INDEPENDENT
    path: Path = LINEAR
    streams: str = ""
    guidance: Guidance | None = None
    null: int = 0

    @cached_property
    def ends(self) -> Ends:
        """The laws of x_0 and x_1."""
        return Ends(self.data, self.source or GaussianSource(self.data.shape), self.seed, self.streams)

    @cached_property
    def posterior(self) -> Posterior | None:
        """The exact posterior velocity, if asked for and known."""
        source = self.ends.source
        if not self.exact or why_unknown(self.data, source, self.coupling, self.conditional, self.guidance):
            return None
        base = posterior_of(self.data)
        if base is None or (self.path is LINEAR and source == GaussianSource(self.data.shape)):
            return base
        return ReducedPosterior(base, self.path, self._components)

    def _components(self, labels: Tensor | None) -> Components:
        found = self.ends.source.components(None if labels is None else labels.numpy())
        assert found is not None, "why_unknown lets only Gaussian mixtures through"
        return found

    def uniforms(self, purpose: str, index: np.ndarray, width: int) -> np.ndarray:
        """Uniform numbers [n, width] of the samples `index` for one purpose."""
        return uniforms(self.seed, f"{self.streams}{purpose}", index, width)

    def times_of(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """r, t [n] of the samples `index`."""
        return self.times.sample(self.uniforms("times", index, self.times.width), index)

    def labels_of(self, index: np.ndarray) -> np.ndarray | None:
        """Labels [n] of the samples `index`, whether or not the model takes them."""
        return self.coupling.labels(self.ends, index)

    def batch(self, index: np.ndarray) -> Batch:
        """The samples `index` [n]."""
        x0, x1, labels, weight = self.coupling.pairs(self.ends, index)
        r, t = self.times_of(index)
        if (importance := self.times.weight(r, t)) is not None:
            weight = importance if weight is None else weight * importance
        kept = torch.as_tensor(labels) if labels is not None and self.conditional else None
        data, noise, start, end = (torch.as_tensor(a, dtype=torch.float64) for a in (x0, x1, r, t))
        weights = None if weight is None else torch.as_tensor(weight)
        if self.guidance is None or kept is None:
            return Batch(index, data, noise, start, end, kept, weights, self.path)
        dropped = self.uniforms("label drop", index, 1)[:, 0] < self.guidance.drop
        scale = self.guidance.scale(self.uniforms("guidance", index, 3), r == t, dropped)
        null = torch.as_tensor(dropped)
        kept = kept.masked_fill(null, self.null)
        return Batch(
            index, data, noise, start, end, kept, weights, self.path, null, Scale(*map(torch.as_tensor, scale))
        )

    def velocity_posterior(self, batch: Batch) -> PosteriorVelocity | None:
        """Marginal velocity, diagonal of Sigma and one fresh draw of v_c at the batch's x_t; None if unknown."""
        if self.posterior is None:
            return None
        u = torch.as_tensor(self.uniforms("posterior", batch.index, self.posterior.width))
        if batch.dropped is None:
            return self.posterior(batch.x_t, batch.t, u, batch.labels)
        assert batch.labels is not None
        # the null label tells nothing of x_0: under it all the data are possible
        found: list[Tensor] = []
        for rows, labels in ((~batch.dropped, batch.labels), (batch.dropped, None)):
            if rows.any():
                told = None if labels is None else labels[rows]
                part = self.posterior(batch.x_t[rows], batch.t[rows], u[rows], told)
                found = found or [values.new_empty(len(rows), *values.shape[1:]) for values in part]
                for whole, values in zip(found, part, strict=True):
                    whole[rows] = values
        return PosteriorVelocity(*found)
