"""Table `quality` of models in memory: the entry point of the library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import nn

from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import Data, FiniteData, as_data
from mfdiag.flow.sources import Source, parse_source
from mfdiag.measures.parts.quality_rows import quality_frame
from mfdiag.measures.run.array_checks import require_no_dropped_array
from mfdiag.measures.run.subject import velocity_of
from mfdiag.models.call_adapter import adapt_to, call_note, unlabeled_note
from mfdiag.models.checkpoint import LoadedModel
from mfdiag.models.open_calls import calls_closed
from mfdiag.models.precision import require_device
from mfdiag.quality.features import Features
from mfdiag.quality.metrics import Metric, default_metrics, find_metric
from mfdiag.quality.points import REPLICATES
from mfdiag.quality.prepared import FeatureSampler, PreparedMetrics, SampleModel, prepare_metrics

__all__ = ["Prepared", "measure_quality", "prepare_quality"]

_LEAST_POINTS = 8  # some metrics use 5 neighbors, which must be fewer than the points
_LARGEST_SEED = 2**62


@dataclass(frozen=True)
class Prepared:
    """Metrics prepared for one data set; `measure` takes any number of models, all on the same noise."""

    metrics: PreparedMetrics
    features_name: str | None

    @calls_closed()
    def measure(
        self,
        model: SampleModel | LoadedModel,
        *,
        nfe: Sequence[int] = (1, 2, 4),
        run: str = "model",
        checkpoint: str = "model",
        checkpoint_sha256: str | None = None,
        step: int | None = None,
        weights: str | None = None,
        say: Callable[[str], None] | None = None,
    ) -> pd.DataFrame:
        """Table `quality` of one model: each metric at each number of steps.

        Args:
            model: A module with forward(x [n, *shape], r [n], t [n], labels [n] or None) -> u, which is copied and
                measured in eval mode; parameters with other names or in another order are passed by name. Or a
                function from noise to samples, both [n, *shape], or what `mfdiag.load_model` returns.
            nfe: Numbers of steps; a function has none, and its column `nfe` is null.
            run: For the column of this name.
            checkpoint: For the column of this name.
            checkpoint_sha256: For the column of this name.
            step: For the column of this name.
            weights: For the column of this name.
            say: Receives one-line notes, such as how the module is called.

        Returns:
            The table; samples that are not finite give the status `nonfinite`.

        Raises:
            InputError: A number of steps is below 1, the names of the module's parameters do not say how it is called,
                or the model fails or returns samples of another shape.
        """
        sampler = self.metrics.sampler
        if isinstance(model, LoadedModel):
            own = model.adapted(sampler.data).module
            notes = [*model.notes, *_notes(own, sampler.data, own=model.built_by_code)]
            model = velocity_of(model, sampler.data)
        elif isinstance(model, nn.Module):
            model = _adapted(model, sampler.data)
            notes = _notes(model, sampler.data)
        else:
            notes = []
        if say is not None:
            for note in notes:
                say(note)
        common = {
            "run": run,
            "checkpoint": checkpoint,
            "checkpoint_sha256": checkpoint_sha256,
            "step": step,
            "dataset": sampler.data.name,
            "seed": sampler.seed,
            "weights": weights,
            "features": self.features_name,
        }
        return quality_frame(common, self.metrics.estimate(model, nfe))


def _adapted(model: nn.Module, data: Data) -> nn.Module:
    """A network of the user, called as the names of its parameters and the data say, arrays beside them included."""
    adapted = adapt_to(model, data)
    require_no_dropped_array((adapted,), data)
    return adapted


def _notes(network: nn.Module, data: Data, *, own: bool = True) -> list[str]:
    """How the user's own network is called, and whether labels are left out."""
    return [note for note in (call_note(network) if own else None, unlabeled_note(network, data)) if note is not None]


# Twelve parameters, because they are the options of `mfdiag quality` and users pass them by keyword.
def prepare_quality(
    data: Any,
    *,
    metrics: Sequence[str] | None = None,
    samples: int = 32768,
    subsample: int = 512,
    seed: int = 0,
    source: str | Source = "gaussian",
    features: Features | None = None,
    features_name: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    chunk: int | None = None,
    held_out: Any = None,
) -> Prepared:
    """Prepare metrics for a data set, so that many models are measured fast.

    Args:
        data: As `measure` takes it, a `Data` with conditions among them. All points of a finite data set are the
            reference.
        metrics: Names of metrics; by default all that need no more than samples and data.
        samples: Samples of each model behind pooled metrics (sliced Wasserstein, Fréchet), in 32 replicates.
        subsample: Metrics of pairs use 32 subsamples of so many points, of the model and of the data.
        seed: Seed of noise and subsamples.
        source: The distribution of the noise.
        features: Map from samples [n, *shape] to features [n, ...], in which all metrics are computed.
        features_name: Name of the map for the column `features`; the name of the function by default.
        device: Where models run.
        dtype: Their dtype; torch.float32 by default.
        chunk: Samples that a model receives at once.
        held_out: Data of the same distribution that no model was trained on, as `data`; for memorization.

    Returns:
        The prepared metrics, with a method `measure`.

    Raises:
        InputError: A name is unknown, a number is out of range, or the data set has fewer than 8 points.
    """
    data = as_data(data)
    require_device(device)
    if samples < 2 * REPLICATES:
        raise InputError(f"--samples must be at least {2 * REPLICATES}, two for each replicate; got {samples}.")
    samples = -(-samples // REPLICATES) * REPLICATES
    if not 0 <= seed <= _LARGEST_SEED:
        raise InputError(f"--seed must be at least 0 and at most 2^62, got {seed}.")
    if subsample < _LEAST_POINTS:
        raise InputError(
            f"--subsample must be at least {_LEAST_POINTS}, because some metrics use 5 neighbors; got {subsample}."
        )
    if isinstance(data, FiniteData) and len(data.points) < _LEAST_POINTS:
        raise InputError(
            f"Sample quality needs at least {_LEAST_POINTS} points of data, but {data.name} has {len(data.points)}."
        )
    fresh = None if held_out is None else _fresh_data(held_out, data)
    selected = _selected_metrics(metrics, fresh)
    noise = parse_source(source, data) if isinstance(source, str) else source
    sampler = FeatureSampler(data, noise, seed, features, device, dtype or torch.float32, chunk)
    if features is not None and features_name is None:
        features_name = getattr(features, "__qualname__", type(features).__name__)
    return Prepared(prepare_metrics(sampler, selected, samples, subsample, fresh), features_name)


def _selected_metrics(names: Sequence[str] | None, fresh: FiniteData | None) -> list[Metric]:
    """The metrics by name, or the default ones. Raises InputError if one needs held-out data and there are none."""
    if names is None:
        names = default_metrics(held_out=fresh is not None)
    selected = [find_metric(name) for name in names]
    if fresh is None and (missing := [metric.name for metric in selected if metric.needs_held_out]):
        raise InputError(
            f"{', '.join(missing)} compares samples with data held out from training: pass --held-out DATA."
        )
    return selected


def _fresh_data(held_out: Any, data: Data) -> FiniteData:
    """Held-out data that fit the data. Raises InputError where they do not."""
    fresh = as_data(held_out)
    if not isinstance(data, FiniteData) or not isinstance(fresh, FiniteData):
        raise InputError("Expected stored samples as data and as held-out data, but one is drawn from a closed form.")
    if fresh.shape != data.shape or len(fresh.points) < REPLICATES:
        raise InputError(
            f"Expected at least {REPLICATES} held-out samples of shape {list(data.shape)}, as {data.name} has, but "
            f"{fresh.name} has {len(fresh.points):,} of shape {list(fresh.shape)}. Correct --held-out."
        )
    return fresh


def measure_quality(
    model: SampleModel | LoadedModel,
    data: Any,
    *,
    nfe: Sequence[int] = (1, 2, 4),
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Table `quality` of a model in memory, with the same numbers as `mfdiag quality`.

    Args:
        model: As `Prepared.measure` takes it.
        data: As `prepare_quality` takes it, or what it returned, which saves time over many models.
        nfe: Numbers of steps.
        say: Receives one-line notes, such as how the model is called.
        **options: Further arguments of `prepare_quality`.

    Returns:
        The table.
    """
    prepared = data if isinstance(data, Prepared) else prepare_quality(data, **options)
    return prepared.measure(model, nfe=nfe, say=say)
