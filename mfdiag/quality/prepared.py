"""From models to metrics: everything that depends on the data is prepared once, then models are measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import Data, FiniteData, load_data
from mfdiag.flow.data.disk_arrays import Points
from mfdiag.flow.sources import Source, parse_source
from mfdiag.gradients.moments import Estimate
from mfdiag.models.precision import in_precision
from mfdiag.quality.intervals import of_replicates, of_shares
from mfdiag.quality.metrics import Metric, PairedSamples, Replicate, find_metric
from mfdiag.quality.metrics import metrics as all_metrics
from mfdiag.quality.points import REPLICATES, independent, spread
from mfdiag.quality.reference import make_reference, make_replicates
from mfdiag.quality.sampling import sample
from mfdiag.quality.tidy import quality_frame

__all__ = ["Features", "Prepared", "Sampler", "measure_quality", "prepare_quality"]

_CHUNK = 2**21  # numbers of noise a network meets at once, at most

Sampler = nn.Module | Callable[[Tensor], Tensor]
"""A model u(x, r, t, labels), or a function from noise [n, *shape] to samples [n, *shape]."""

Features = Callable[[Tensor], Tensor]
"""Samples [n, *shape] -> features [n, ...]."""


@dataclass(frozen=True)
class Prepared:
    """Metrics prepared for one data set; `measure` takes any number of models, all on the same noise.

    `pooled` and `paired` are the prepared functions of `Metric`, by name, the latter one for each replicate.
    """

    data: Data
    source: Source
    samples: int
    replicates: list[Replicate]
    seed: int
    pooled: dict[str, Callable[[Tensor], Estimate]]
    paired: dict[str, list[Callable[[PairedSamples], float]]]
    features: Features | None
    features_name: str | None
    device: str
    dtype: torch.dtype
    chunk: int | None

    def measure(
        self,
        model: Sampler,
        *,
        nfe: Sequence[int] = (1, 2, 4),
        run: str = "model",
        checkpoint: str = "model",
        checkpoint_sha256: str | None = None,
        step: int | None = None,
        weights: str | None = None,
    ) -> pd.DataFrame:
        """Table `quality` of one model: each metric at each number of steps `nfe`.

        `model` is a module with forward(x [n, *shape], r [n], t [n], labels [n] or None) -> u, which is copied and
        measured in eval mode, or a function from noise to samples, both [n, *shape], for which `nfe` is null. The
        other arguments fill the columns of these names. Raises InputError for steps below 1 and samples of a wrong
        shape; samples that are not finite give the status `nonfinite`.
        """
        if not len(nfe) or min(nfe) < 1:
            raise InputError(f"--nfe takes numbers of steps of at least 1, as in 1,2,4; got {list(nfe)}.")
        common = {
            "run": run,
            "checkpoint": checkpoint,
            "checkpoint_sha256": checkpoint_sha256,
            "step": step,
            "dataset": self.data.name,
            "seed": self.seed,
            "weights": weights,
            "features": self.features_name,
        }
        found: list[tuple[int | None, str, Estimate]] = []
        if isinstance(model, nn.Module):
            network = in_precision(copy.deepcopy(model).eval().to(self.device), self.dtype)
            conditional = bool(getattr(model, "num_classes", 0))
            for steps in nfe:
                generate = _steps(network, steps)
                found += [(steps, name, e) for name, e in self._estimates(generate, conditional)]
        else:
            found = [(None, name, e) for name, e in self._estimates(lambda noise, _: model(noise), False)]
        return quality_frame(common, found)

    def _estimates(self, generate: _Generate, conditional: bool) -> Iterator[tuple[str, Estimate]]:
        if self.pooled:
            size = self.samples // REPLICATES
            samples = torch.stack([self._draw(generate, conditional, spread, b, size) for b in range(REPLICATES)])
            finite = bool(samples.isfinite().all())
            for name, measure in self.pooled.items():
                yield name, measure(samples) if finite else _missing(self.samples)
        if self.paired:
            values = np.array([self._paired(generate, conditional, b) for b in range(REPLICATES)])
            count = REPLICATES * len(self.replicates[0].y)
            for name, column in zip(self.paired, values.T, strict=True):
                estimate = of_shares if find_metric(name).share else of_replicates
                yield name, estimate(column, count) if np.isfinite(column).all() else _missing(count)

    def _paired(self, generate: _Generate, conditional: bool, replicate: int) -> list[float]:
        """Value of each paired metric on one subsample."""
        y = self.replicates[replicate].y
        x = self._draw(generate, conditional, independent, replicate, len(y)).double()
        if not x.isfinite().all():
            return [np.nan] * len(self.paired)
        pairs = PairedSamples(x, torch.cdist(x, x), torch.cdist(x, y))
        return [measures[replicate](pairs) for measures in self.paired.values()]

    def _draw(self, generate: _Generate, conditional: bool, draw: Any, replicate: int, size: int) -> Tensor:
        """Features [size, d] of samples from noise that depends on the seed and the sample's number alone."""
        labelled = self.data.num_classes > 0 and (conditional or self.source.depends_on_label)
        width = self.data.width if labelled else 0
        u = draw(self.seed, "quality/noise", replicate, size, width + self.source.width)
        labels = self.data.sample(u[:, :width])[1] if labelled else None
        noise = torch.as_tensor(self.source.sample(u[:, width:], labels)).to(self.device, self.dtype)
        given = torch.as_tensor(labels).to(self.device) if labels is not None and conditional else None
        chunk = self.chunk or max(1, min(8192, _CHUNK // noise[0].numel()))
        parts = []
        for start in range(0, size, chunk):
            part = noise[start : start + chunk]
            x = _generated(generate, part, None if given is None else given[start : start + chunk])
            parts.append(_embedded(x, self.features))
        return torch.cat(parts)


_Generate = Callable[[Tensor, Tensor | None], Tensor]  # noise [n, *shape], labels [n] or None -> samples [n, *shape]


def _steps(network: nn.Module, nfe: int) -> _Generate:
    return lambda noise, labels: sample(network, noise, nfe, labels)


def _generated(generate: _Generate, noise: Tensor, labels: Tensor | None) -> Tensor:
    """Samples shaped as the noise; InputError where the model does not take it or returns something else."""
    expected = f"Expected a model that maps noise of shape {list(noise.shape)} to samples of that shape"
    try:
        with torch.no_grad():
            x = generate(noise, labels)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{expected}, but it failed: {reason}; check --data and --model.") from error
    if not isinstance(x, Tensor) or x.shape != noise.shape:
        came = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"{expected}, but it returned {came}; check --data and --model.")
    return x


def _embedded(x: Tensor, features: Features | None) -> Tensor:
    """Features of samples [n, *shape], flat [n, d]: the samples themselves without a map."""
    if features is None:
        return x.flatten(1)
    with torch.no_grad():
        found = features(x)
    if not isinstance(found, Tensor) or found.shape[:1] != x.shape[:1]:
        came = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"--features must map {len(x)} samples to as many rows of features, but it returned {came}.")
    return found.reshape(len(x), -1)


def _missing(samples: int) -> Estimate:
    nan = np.array(np.nan)
    return Estimate(nan, nan, nan, nan, samples)


def prepare_quality(
    data: str | Data | np.ndarray,
    *,
    metrics: Sequence[str] | None = None,
    samples: int = 32768,
    subsample: int = 512,
    seed: int = 0,
    source: str | Source = "gaussian",
    features: Features | None = None,
    features_name: str | None = None,
    device: str = "cpu",
    dtype: Any = None,
    chunk: int | None = None,
) -> Prepared:
    """Everything about the data that `metrics` (all of them by default) need, so that models are measured fast.

    `data` is a specification (`"eight_gaussians"`, `"mixture:8,4"`, a file), a `Data`, or an array [N, *shape]; of a
    finite set all points are the reference. `samples` are those behind pooled metrics (sliced Wasserstein, Frechet),
    in 32 replicates; metrics of pairs use 32 subsamples of `subsample` points on each side. `source` is the law of
    the noise; `features` maps samples [n, *shape] to features [n, ...] in which all metrics are taken.
    """
    if isinstance(data, str):
        data = load_data(data)
    elif isinstance(data, np.ndarray):
        data = FiniteData("array", data)
    if samples < 2 * REPLICATES:
        raise InputError(f"--samples must be at least {2 * REPLICATES}, two for each replicate; got {samples}.")
    samples = -(-samples // REPLICATES) * REPLICATES
    if not 0 <= seed <= 2**62:
        raise InputError(f"--seed must be at least 0 and at most 2^62, got {seed}.")
    if subsample < 8:
        raise InputError(f"--subsample must be at least 8, for some metrics use 5 neighbours; got {subsample}.")
    if isinstance(data, FiniteData) and len(data.points) < 8:
        raise InputError(f"Sample quality needs at least 8 points of data, but {data.name} has {len(data.points)}.")
    chosen: list[Metric] = list(all_metrics().values()) if metrics is None else [find_metric(name) for name in metrics]
    dtype = dtype or torch.float32
    size = chunk or max(1, min(8192, _CHUNK // int(np.prod(data.shape))))

    def embed(points: np.ndarray | Points) -> Tensor:
        parts = [torch.as_tensor(points[start : start + size]) for start in range(0, len(points), size)]
        return torch.cat([_embedded(part.to(device, dtype), features) for part in parts])

    reference = make_reference(data, embed, samples, seed) if any(m.pooled for m in chosen) else None
    replicates = make_replicates(data, embed, subsample, seed) if any(m.paired for m in chosen) else []
    return Prepared(
        data,
        parse_source(source, data) if isinstance(source, str) else source,
        samples,
        replicates,
        seed,
        {m.name: m.pooled(reference) for m in chosen if m.pooled and reference},
        {m.name: [m.paired(replicate) for replicate in replicates] for m in chosen if m.paired},
        features,
        features_name or (None if features is None else getattr(features, "__qualname__", type(features).__name__)),
        device,
        dtype,
        chunk,
    )


def measure_quality(
    model: Sampler, data: str | Data | np.ndarray | Prepared, *, nfe: Sequence[int] = (1, 2, 4), **options: Any
) -> pd.DataFrame:
    """Table `quality` of a model in memory: the same numbers as `mfdiag quality`.

    `data` is what `prepare_quality` takes, with its `options`, or what it returned, which saves time over many models.
    See `Prepared.measure` for `model` and `nfe`.
    """
    prepared = data if isinstance(data, Prepared) else prepare_quality(data, **options)
    return prepared.measure(model, nfe=nfe)
