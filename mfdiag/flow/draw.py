"""Batches of (x_0, x_1, r, t). Sample i depends on (seed, i) alone, or on its group under a coupling of groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mfdiag.flow.conditions import Condition, Conditions
from mfdiag.flow.couplings import INDEPENDENT, REVERSED, Coupling, Marginals
from mfdiag.flow.data.datasets import Data, FiniteData, GaussianData, MixtureData, MomentsData, condition_groups
from mfdiag.flow.guidance import Guidance, GuidanceScale
from mfdiag.flow.moments_posterior import MomentsPosterior
from mfdiag.flow.paths import LINEAR, Path
from mfdiag.flow.posterior import FinitePosterior, MixturePosterior, Posterior, PosteriorVelocity
from mfdiag.flow.seeds import uniforms
from mfdiag.flow.sources import Components, GaussianSource, Source
from mfdiag.flow.times import TimeSampler
from mfdiag.flow.transformed_posterior import TransformedPosterior

__all__ = ["Batch", "Draws", "posterior_of", "why_posterior_unknown"]

_MOST_ALONE = 0.1  # share of samples with a condition of their own up to which conditions count as discrete


@dataclass(frozen=True)
class Batch:
    """n samples, with all tensors in float64.

    Attributes:
        index: Sample numbers, int64 [n].
        x0: Data [n, *shape].
        x1: Noise [n, *shape].
        r: Interval starts [n], with r <= t.
        t: Times [n].
        labels: int64 [n], or None if the model takes none. Dropped labels are the null label.
        weight: Factor of each sample's loss [n], or None if all factors are 1.
        path: The path from x_0 to x_1.
        dropped: Under guidance, whether the condition was replaced by its null value, bool [n]; else None.
        scale: Under guidance, strength and interval of each sample; else None.
        conditions: Arrays [n, ...] that the model takes, by name, in the type they are stored in.
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
    scale: GuidanceScale | None = None
    conditions: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def condition(self) -> Condition:
        """What the model receives besides the point and its times."""
        return Conditions(self.labels, self.conditions, self.dropped) if self.conditions else self.labels

    def at(self, time: Tensor) -> Tensor:
        """Points of the path [n, *shape] at times [n]."""
        return self.path.point(self.x0, self.x1, time)

    @property
    def velocity(self) -> Tensor:
        """Conditional velocity v_c at time t [n, *shape]; x_1 - x_0 on the linear path."""
        return self.path.velocity(self.x0, self.x1, self.t)

    @property
    def x_t(self) -> Tensor:
        """The point at time t [n, *shape]; (1 - t) x_0 + t x_1 on the linear path."""
        return self.at(self.t)


def posterior_of(data: Data, groups: np.ndarray | None = None) -> Posterior | None:
    """The exact posterior velocity on the linear path from N(0, I).

    Args:
        data: Distribution of x_0.
        groups: Numbers [N] of the conditions of stored samples, which take the place of labels; None for labels.

    Returns:
        The posterior, or None if it is not known.
    """
    if isinstance(data, GaussianData):
        return MixturePosterior.gaussian(data.mean, data.std, data.dim)
    if isinstance(data, MixtureData):
        return MixturePosterior.of_covariances(*map(torch.as_tensor, (data.weights, data.means, data.covariances)))
    if not isinstance(data, FiniteData | MomentsData):
        return None
    numbers = data.labels if groups is None else groups
    labels = None if numbers is None else torch.as_tensor(numbers)
    if isinstance(data, FiniteData):
        points = torch.as_tensor(data.points) if isinstance(data.points, np.ndarray) else data.points
        return FinitePosterior(points, labels)
    return MomentsPosterior(data.moments, labels)


def why_posterior_unknown(
    data: Data,
    source: Source,
    coupling: Coupling,
    conditional: bool,
    guidance: Guidance | None = None,
    conditions: tuple[str, ...] = (),
) -> str | None:
    """Why the exact posterior velocity is not known.

    Args:
        data: Distribution of x_0.
        source: Distribution of x_1.
        coupling: Joint distribution of the two.
        conditional: Whether the model takes labels.
        guidance: The guidance of the objective, or None.
        conditions: Names of the conditions that the model takes.

    Returns:
        A clause for a note to the user, or None if the posterior is known (on any path).
    """
    if not isinstance(data, FiniteData | GaussianData | MixtureData | MomentsData):
        return f"the posterior of {data.name} is not known"
    if coupling is REVERSED:
        return "the coupling reversed has noise as x_0, and the posterior is computed only for data as x_0"
    if coupling.dependent:
        return f"the coupling {coupling.name} makes x_0 and x_1 dependent, and their posterior is not known"
    any_label = np.zeros(1, np.int64) if conditional and data.num_classes else None
    drops_labels = guidance is not None and guidance.drop > 0
    if source.components(any_label) is None or (drops_labels and source.components(None) is None):
        return (
            f"the source {source.name} is not a Gaussian mixture for each label, and the posterior is known only for "
            "such sources"
        )
    return _why_conditions_hide_it(data, conditional, conditions) if conditions else None


def _why_conditions_hide_it(data: Data, conditional: bool, conditions: tuple[str, ...]) -> str | None:
    """Why nothing can be said about x_0 given x_t and a condition that hardly two samples share; None if many do."""
    assert isinstance(data, FiniteData | MomentsData), "only stored samples have conditions"
    groups = condition_groups(data, conditions, conditional)
    share = float((np.bincount(groups)[groups] == 1).mean())
    if share <= _MOST_ALONE:
        return None
    return (
        f"{share:.0%} of the samples of {data.name} have a value of {', '.join(conditions)} of their own, so the "
        "posterior given the condition is that one sample (docs/data.md#conditions)"
    )


@dataclass(frozen=True)
class Draws:
    """How samples are drawn: distributions, path and seed.

    Attributes:
        data: Distribution of x_0.
        times: Distribution of (r, t).
        seed: Seed of all random numbers.
        conditional: Whether batches have labels, because the model takes them.
        exact_posterior: Whether to compute the exact posterior if it is known.
        source: Distribution of x_1; None is N(0, I).
        coupling: Joint distribution of x_0 and x_1.
        path: The path from x_0 to x_1.
        stream_prefix: Start of the names of the random streams, so that training and measuring see other samples.
        guidance: The guidance of the objective, which drops a fraction of the labels; or None.
        null_label: The label that replaces dropped ones.
        conditions: Names of the arrays beside the samples that batches have, because the model takes them.
    """

    data: Data
    times: TimeSampler
    seed: int
    conditional: bool = True
    exact_posterior: bool = True
    source: Source | None = None
    coupling: Coupling = INDEPENDENT
    path: Path = LINEAR
    stream_prefix: str = ""
    guidance: Guidance | None = None
    null_label: int = 0
    conditions: tuple[str, ...] = ()

    @cached_property
    def marginals(self) -> Marginals:
        """The distributions of x_0 and x_1."""
        return Marginals(self.data, self.source or GaussianSource(self.data.shape), self.seed, self.stream_prefix)

    @cached_property
    def posterior(self) -> Posterior | None:
        """The exact posterior velocity, or None if it is not known or not requested."""
        source = self.marginals.source
        if not self.exact_posterior or why_posterior_unknown(
            self.data, source, self.coupling, self.conditional, self.guidance, self.conditions
        ):
            return None
        base = posterior_of(self.data, self._groups)
        if base is None or (self.path is LINEAR and source == GaussianSource(self.data.shape)):
            return base
        return TransformedPosterior(base, self.path, self._components)

    @cached_property
    def _groups(self) -> np.ndarray | None:
        """Numbers [N] of the conditions of stored samples, labels among them; None without conditions."""
        if not self.conditions:
            return None
        assert isinstance(self.data, FiniteData | MomentsData), "only stored samples have conditions"
        return condition_groups(self.data, self.conditions, self.conditional)

    def condition_numbers(self, rows: np.ndarray, labels: np.ndarray | Tensor | None) -> Tensor | None:
        """What stands for a condition: the label, or the number among the distinct conditions where the model has some.

        Args:
            rows: Numbers [n] of stored samples; not used without conditions.
            labels: Their labels [n], or None.

        Returns:
            int64 [n]; None without labels and conditions.
        """
        numbers = labels if self._groups is None else self._groups[rows]
        return None if numbers is None else torch.as_tensor(numbers)

    def _components(self, labels: Tensor | None) -> Components:
        if labels is not None and self._groups is not None:  # numbers of conditions
            of_data = self.data.labels if self.conditional else None  # type: ignore[attr-defined]
            first = np.unique(self._groups, return_index=True)[1]
            labels = None if of_data is None else torch.as_tensor(of_data[first])[labels]
        components = self.marginals.source.components(None if labels is None else labels.numpy())
        assert components is not None, "why_posterior_unknown lets only Gaussian mixtures pass"
        return components

    def uniforms(self, purpose: str, index: np.ndarray, width: int) -> np.ndarray:
        """Uniform numbers of the samples `index` for one purpose.

        Args:
            purpose: Name of the random stream, without the prefix.
            index: Sample numbers [n].
            width: Numbers per sample.

        Returns:
            float64 [n, width] in (0, 1).
        """
        return uniforms(self.seed, f"{self.stream_prefix}{purpose}", index, width)

    def times_of(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """r and t, each [n], of the samples `index`."""
        return self.times.sample(self.uniforms("times", index, self.times.width), index)

    def labels_of(self, index: np.ndarray) -> np.ndarray | None:
        """Labels [n] of the samples `index`, even if the model takes none; None if the data have none."""
        return self.coupling.labels(self.marginals, index)

    def batch(self, index: np.ndarray) -> Batch:
        """The samples with the numbers `index` [n]."""
        x0, x1, labels, weight = self.coupling.pairs(self.marginals, index)
        r, t = self.times_of(index)
        if (importance := self.times.weight(r, t)) is not None:
            weight = importance if weight is None else weight * importance
        data, noise, start, end = (torch.as_tensor(values, dtype=torch.float64) for values in (x0, x1, r, t))
        batch = Batch(
            index,
            data,
            noise,
            start,
            end,
            labels=torch.as_tensor(labels) if labels is not None and self.conditional else None,
            weight=None if weight is None else torch.as_tensor(weight),
            path=self.path,
            conditions={
                name: torch.as_tensor(values)
                for name, values in self.coupling.conditions(self.marginals, index, self.conditions).items()
            },
        )
        if self.guidance is None or batch.condition is None:
            return batch
        is_dropped = self.uniforms("label drop", index, 1)[:, 0] < self.guidance.drop
        scale = self.guidance.sample_scale(self.uniforms("guidance", index, 3), r == t, is_dropped)
        dropped = torch.as_tensor(is_dropped)
        return replace(
            batch,
            labels=None if batch.labels is None else batch.labels.masked_fill(dropped, self.null_label),
            dropped=dropped,
            scale=GuidanceScale(*map(torch.as_tensor, scale)),
        )

    def velocity_posterior(self, batch: Batch) -> PosteriorVelocity | None:
        """Posterior of v_c at the batch's x_t: mean, variance, and one fresh draw. None if it is unknown."""
        if self.posterior is None:
            return None
        u = torch.as_tensor(self.uniforms("posterior", batch.index, self.posterior.width))
        rows = self.marginals.rows_of(batch.index) if self.conditions else batch.index
        numbers = self.condition_numbers(rows, batch.labels)
        if batch.dropped is None:
            return self.posterior(batch.x_t, batch.t, u, numbers)
        # a null condition has no information on x_0: it can be any of the data
        merged: list[Tensor] = []
        for chosen, known in ((~batch.dropped, numbers), (batch.dropped, None)):
            if chosen.any():
                own = None if known is None else known[chosen]
                part = self.posterior(batch.x_t[chosen], batch.t[chosen], u[chosen], own)
                merged = merged or [values.new_empty(len(chosen), *values.shape[1:]) for values in part]
                for whole, values in zip(merged, part, strict=True):
                    whole[chosen] = values
        return PosteriorVelocity(*merged)
