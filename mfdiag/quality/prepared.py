"""Metrics prepared once for a data set, then computed for many models.

`mfdiag.prepare_quality` in measures/run/quality_api.py is the public entry point; it makes table `quality`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mfdiag.errors import InputError, is_out_of_memory
from mfdiag.flow.conditions import Condition, Conditions, labels_of
from mfdiag.flow.data.datasets import Data, FiniteData, conditions_of
from mfdiag.flow.data.disk_arrays import Points
from mfdiag.flow.sources import Source
from mfdiag.gradients.intervals import Estimate
from mfdiag.models.precision import measured_copy
from mfdiag.models.wrapper import conditions_taken
from mfdiag.quality.checks import repeatable_output, require_same_output
from mfdiag.quality.features import Features, flat_features
from mfdiag.quality.intervals import estimate_from_replicates, estimate_from_shares
from mfdiag.quality.metrics import MANY_STEPS, DataSubsample, Metric, PairedSamples, find_metric
from mfdiag.quality.points import REPLICATES, independent_uniforms, sobol_uniforms
from mfdiag.quality.reference import make_reference, make_subsamples
from mfdiag.quality.sampling import Generate, generate_samples, sample
from mfdiag.world import current_world

__all__ = ["FeatureSampler", "MetricEstimate", "PreparedMetrics", "SampleModel", "prepare_metrics"]

_CHUNK_NUMBERS = 2**21  # coordinates that a network gets at once, at most: bounds the memory of large samples
_CHUNK_SAMPLES = 8192  # samples that a network gets at once, at most: more are not faster
_COMPARED_SAMPLES = 8  # on which processes must agree

SampleModel = nn.Module | Callable[[Tensor], Tensor]
"""A model u(x, r, t, labels), or a function from noise [n, *shape] to samples [n, *shape]."""


class SampledModel(NamedTuple):
    """A model as samples are drawn from it.

    Attributes:
        generate: From noise and condition to samples.
        conditional: Whether it takes labels.
        conditions: Names of the arrays beside the data that it takes.
    """

    generate: Generate
    conditional: bool = False
    conditions: tuple[str, ...] = ()


class MetricEstimate(NamedTuple):
    """A metric of one model at `nfe` steps (None for a sampling function)."""

    nfe: int | None
    metric: str
    estimate: Estimate


@dataclass(frozen=True)
class FeatureSampler:
    """Draws samples of models in feature space; all models get the same noise.

    Attributes:
        data: The data set, which gives labels and conditions.
        source: The distribution of the noise.
        seed: Seed of noise, labels and conditions.
        features: The feature map; None for the samples themselves.
        device: Where models run.
        dtype: In which precision.
        chunk: Samples that a model gets at once; None chooses by their size.
    """

    data: Data
    source: Source
    seed: int
    features: Features | None
    device: str
    dtype: torch.dtype
    chunk: int | None

    def of_data(self, points: np.ndarray | Points) -> Tensor:
        """Features [n, d] of data points [n, *shape]."""
        size = self._chunk_size(int(np.prod(self.data.shape)))
        parts = [torch.as_tensor(points[start : start + size]) for start in range(0, len(points), size)]
        return torch.cat([flat_features(part.to(self.device, self.dtype), self.features) for part in parts])

    def of_model(self, model: SampledModel, uniforms: Callable[..., np.ndarray], replicate: int, size: int) -> Tensor:
        """Features of a model's samples, whose noise and condition depend on the seed and the sample's number alone.

        Args:
            model: The model.
            uniforms: `sobol_uniforms` or `independent_uniforms`.
            replicate: Number of the replicate.
            size: Number of samples.

        Returns:
            Features [size, d].
        """
        labeled = self.data.num_classes > 0 and (model.conditional or self.source.depends_on_label)
        width = self.data.width if labeled or model.conditions else 0
        u = uniforms(self.seed, "quality/noise", replicate, size, width + self.source.width)
        labels = self.data.sample(u[:, :width])[1] if labeled else None
        noise = torch.as_tensor(self.source.sample(u[:, width:], labels)).to(self.device, self.dtype)
        own = torch.as_tensor(labels).to(self.device) if labels is not None and model.conditional else None
        rows = self.data.rows(u[:, :width]) if model.conditions else None  # type: ignore[attr-defined]

        def features_of(part: slice) -> Tensor:
            condition: Condition = None if own is None else own[part]
            if rows is not None:
                arrays = {n: torch.as_tensor(conditions_of(self.data)[n][rows[part]]) for n in model.conditions}
                condition = Conditions(labels_of(condition), arrays).to(noise)
            return flat_features(generate_samples(model.generate, noise[part], condition), self.features)

        return torch.cat(_in_chunks(features_of, size, self._chunk_size(noise[0].numel())))

    def _chunk_size(self, coordinates: int) -> int:
        return self.chunk or max(1, min(_CHUNK_SAMPLES, _CHUNK_NUMBERS // coordinates))


@dataclass(frozen=True)
class PreparedMetrics:
    """Metrics prepared for one data set.

    Attributes:
        sampler: Draws the samples of models.
        samples: Number of samples behind each pooled metric, a multiple of REPLICATES.
        subsamples: Subsamples of the data, one for each replicate; empty without metrics of pairs.
        pooled: The prepared function of each pooled metric (see `Metric.pooled`).
        paired: The prepared functions of each metric of pairs, one for each replicate (see `Metric.paired`).
        stepwise: The function of each metric of steps (see `Metric.stepwise`).
        subsample: Number of samples in each replicate, for metrics of steps.
    """

    sampler: FeatureSampler
    samples: int
    subsamples: list[DataSubsample]
    pooled: dict[str, Callable[[Tensor], Estimate]]
    paired: dict[str, list[Callable[[PairedSamples], float]]]
    stepwise: dict[str, Callable[[Tensor, Tensor], float]]
    subsample: int

    def estimate(self, model: SampleModel, nfe: Sequence[int]) -> list[MetricEstimate]:
        """Compute every metric for one model. Processes share the replicates, then the metrics of all samples.

        Args:
            model: A module u(x, r, t, labels), which is copied and run in eval mode, or a function from noise to
                samples.
            nfe: Numbers of steps, each at least 1; not used for a function.

        Returns:
            An estimate for each number of steps and metric; NaN if samples are not finite.

        Raises:
            InputError: A number of steps is below 1, the model fails or returns samples of another shape, or processes
                have other models or data.
        """
        if not len(nfe) or min(nfe) < 1:
            raise InputError(f"--nfe takes numbers of steps of at least 1, as in 1,2,4; got {list(nfe)}.")
        if not isinstance(model, nn.Module):
            if self.stepwise:
                raise InputError(
                    f"{', '.join(self.stepwise)} needs a network, but got a function from noise to samples."
                )
            function = SampledModel(lambda noise, _: model(noise))
            return [MetricEstimate(None, *pair) for pair in self._estimates(function)]
        network = measured_copy(model, self.sampler.device, self.sampler.dtype)
        conditional, conditions = bool(getattr(model, "num_classes", 0)), conditions_taken(model)
        one, *models = (
            SampledModel(_sampler_of(network, steps), conditional, conditions) for steps in (1, *nfe, MANY_STEPS)
        )
        with self._repeatable(network, one):
            many = self._independent_samples(models[-1]) if self.stepwise else []
            return [
                MetricEstimate(steps, *pair)
                for steps, sampled in zip(nfe, models, strict=False)
                for pair in [*self._estimates(sampled), *self._stepwise_estimates(sampled, many)]
            ]

    def _estimates(self, model: SampledModel) -> Iterator[tuple[str, Estimate]]:
        self._require_agreement(model)
        world = current_world()
        if self.pooled:
            samples = torch.stack(world.spread(lambda b: self._pooled_samples(model, b), REPLICATES))
            samples = samples.to(self.sampler.device)
            finite, functions = bool(samples.isfinite().all()), list(self.pooled.values())
            estimates = world.spread(
                lambda k: functions[k](samples) if finite else _missing(self.samples), len(functions)
            )
            yield from zip(self.pooled, estimates, strict=True)
        if self.paired:
            values = np.array(world.spread(lambda b: self._paired_values(model, b), REPLICATES))
            count = REPLICATES * len(self.subsamples[0].y)
            for name, column in zip(self.paired, values.T, strict=True):
                interval = estimate_from_shares if find_metric(name).share else estimate_from_replicates
                yield name, interval(column, count) if np.isfinite(column).all() else _missing(count)

    def _independent_samples(self, model: SampledModel) -> list[Tensor]:
        """Features of all replicates, on the CPU."""

        def features(replicate: int) -> Tensor:
            return self.sampler.of_model(model, independent_uniforms, replicate, self.subsample).double().cpu()

        return current_world().spread(features, REPLICATES)

    def _stepwise_estimates(self, model: SampledModel, many: Sequence[Tensor]) -> Iterator[tuple[str, Estimate]]:
        """Each metric of steps, from the samples `many` that the same noise gives in many steps."""
        if not self.stepwise:
            return
        few, count = self._independent_samples(model), REPLICATES * self.subsample
        for name, function in self.stepwise.items():
            values = np.array([function(*pair) for pair in zip(few, many, strict=True)])
            yield name, estimate_from_replicates(values, count) if np.isfinite(values).all() else _missing(count)

    @contextmanager
    def _repeatable(self, network: nn.Module, model: SampledModel) -> Iterator[None]:
        """InputError where the network is random, mixes samples, or has another state after what is done within."""
        calls: list[tuple[Tensor, Condition]] = []

        def record(noise: Tensor, condition: Condition) -> Tensor:
            calls.append((noise, condition))
            return noise

        count = min(_COMPARED_SAMPLES, self.samples // REPLICATES, self.sampler.chunk or _COMPARED_SAMPLES)
        self.sampler.of_model(model._replace(generate=record), independent_uniforms, 0, count)
        noise, condition = calls[0]
        t = torch.linspace(1, 1 / len(noise), len(noise)).to(noise)
        inputs = (noise, torch.zeros_like(t), t, condition)
        before = current_world().together(lambda: repeatable_output(network, inputs))
        yield
        current_world().together(lambda: require_same_output(network, inputs, before))

    def _require_agreement(self, model: SampledModel) -> None:
        """InputError where a few samples of the model or of the data are not those of other processes."""
        sampler, world = self.sampler, current_world()
        if world.size == 1:
            return
        u = independent_uniforms(sampler.seed, "quality/data", 0, _COMPARED_SAMPLES, sampler.data.width)
        points = torch.as_tensor(sampler.data.sample(u)[0])
        samples = world.together(lambda: sampler.of_model(model, independent_uniforms, 0, _COMPARED_SAMPLES))
        world.require_same([points, samples])

    def _pooled_samples(self, model: SampledModel, replicate: int) -> Tensor:
        """Features of one replicate; on the CPU where other processes wait for them."""
        samples = self.sampler.of_model(model, sobol_uniforms, replicate, self.samples // REPLICATES)
        return samples if current_world().size == 1 else samples.cpu()

    def _paired_values(self, model: SampledModel, replicate: int) -> list[float]:
        """The value of each metric of pairs on one subsample."""
        y = self.subsamples[replicate].y
        x = self.sampler.of_model(model, independent_uniforms, replicate, len(y)).double()
        if not x.isfinite().all():
            return [np.nan] * len(self.paired)
        pairs = PairedSamples(x, torch.cdist(x, x), torch.cdist(x, y))
        return [functions[replicate](pairs) for functions in self.paired.values()]


def _in_chunks(compute: Callable[[slice], Tensor], size: int, chunk: int) -> list[Tensor]:
    """What `compute` makes of each part of a range, in parts of half the size where memory is exhausted."""
    parts: list[Tensor] = []
    start = 0
    while start < size:
        try:
            parts.append(compute(slice(start, min(start + chunk, size))))
            start += chunk
        except Exception as error:
            if not is_out_of_memory(error) or chunk == 1:
                raise
            chunk //= 2
    return parts


def _sampler_of(network: nn.Module, nfe: int) -> Generate:
    return lambda noise, condition: sample(network, noise, nfe, condition)


def _missing(samples: int) -> Estimate:
    nan = np.array(np.nan)
    return Estimate(nan, nan, nan, nan, samples)


def prepare_metrics(
    sampler: FeatureSampler,
    metrics: Sequence[Metric],
    samples: int,
    subsample: int,
    held_out: FiniteData | None = None,
) -> PreparedMetrics:
    """Compute everything that metrics need of the data.

    Args:
        sampler: Draws samples of models; its data set is the reference.
        metrics: The metrics.
        samples: Number of samples behind each pooled metric, a multiple of REPLICATES.
        subsample: Points in each subsample, for metrics of pairs.
        held_out: Data that no model was trained on, for metrics that need them.

    Returns:
        The prepared metrics.
    """
    data, seed = sampler.data, sampler.seed
    needs_reference, needs_subsamples = any(m.pooled for m in metrics), any(m.paired for m in metrics)
    reference = make_reference(data, sampler.of_data, samples, seed, held_out) if needs_reference else None
    subsamples = make_subsamples(data, sampler.of_data, subsample, seed) if needs_subsamples else []
    return PreparedMetrics(
        sampler,
        samples,
        subsamples,
        {m.name: m.pooled(reference) for m in metrics if m.pooled and reference},
        {m.name: [m.paired(part) for part in subsamples] for m in metrics if m.paired},
        {m.name: m.stepwise for m in metrics if m.stepwise},
        subsample,
    )
