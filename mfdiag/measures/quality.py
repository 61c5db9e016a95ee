"""`mfdiag quality`: distances between a model's samples and the data, and their means over training seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mfdiag.measures.run.job import Job
from mfdiag.tables.columns import table_of
from mfdiag.tables.fields import Column, Quantity

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from mfdiag.flow.data.datasets import Data
    from mfdiag.gradients.pass_checkpoint import PassCheckpoint
    from mfdiag.measures.parts.summary import Summary
    from mfdiag.measures.run.convention_check import Doubt
    from mfdiag.measures.run.quality_api import Prepared
    from mfdiag.measures.run.request import Progress
    from mfdiag.measures.run.subject import Subject, SubjectOptions
    from mfdiag.quality.features import Features

__all__ = ["TABLE", "QualityJob", "QualityRequest", "WeightsSubject", "summary"]

_ANY_TIMES = "uniform"  # samples have none, so nothing must be said of them

TABLE = table_of(
    "quality",
    "quality",
    "Distances between a model's samples and the data. Metrics of pairs depend on --subsample, metrics on features "
    "depend on the map: compare only values of equal settings.",
    (
        Column("metric", "string", "Name of the metric; see mfdiag list metrics."),
        Column(
            "nfe",
            "int64",
            "Steps of the sampler, on an equal grid from t = 1 to 0: network evaluations per sample; null for "
            "a sampling function.",
            nullable=True,
        ),
        Column("weights", "string", "Set of weights (raw, ema or a key); null for a model in memory.", True),
        Column("features", "string", "Feature map the metric is computed on; null for the samples themselves.", True),
    ),
    Quantity("value", "as `mfdiag list metrics` says", "the metric's", "The metric of one model."),
    Quantity(
        "mean_over_seeds",
        "mean of value",
        "the metric's",
        "Mean over models that differ only in the training seed; checkpoint lists them in braces.",
    ),
)


@dataclass(frozen=True)
class QualityRequest:
    """What to measure; fields as the arguments of `prepare_quality`. `device` and `chunk` change no number."""

    metrics: Sequence[str]
    nfe: Sequence[int]
    weights: Sequence[str]
    samples: int
    subsample: int
    seed: int
    features_name: str | None
    dtype: torch.dtype | None = field(default=None, repr=False)
    features: Features | None = field(default=None, repr=False)
    device: str = "cpu"
    chunk: int | None = None
    held_out: str | None = None

    def prepare(self, subject: Subject, held_out: Data | None = None) -> Prepared:
        """Metrics for the subject's data and source, and for data held out from its training."""
        import torch

        from mfdiag.measures.run.quality_api import prepare_quality
        from mfdiag.quality.features import load_features

        options = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("nfe", "weights")}
        if self.features is None and self.features_name is not None:  # in another process than the one that loaded it
            options["features"] = load_features(self.features_name, self.device, self.dtype or torch.float32)
        options["held_out"] = held_out
        return prepare_quality(subject.data, source=subject.source or "gaussian", **options)


class WeightsSubject(NamedTuple):
    """One set of weights of a checkpoint."""

    path: Path
    weights: str
    subject: Subject


class QualityJob(Job[WeightsSubject]):
    """Measures the sample quality of each checkpoint and set of weights.

    Args:
        checkpoints: Files or folders of weights.
        options: How the checkpoints are read; its `weights` are those of the request, one after another.
        request: Metrics, steps, samples.
        recorded: Further options for the manifest, which may not change between a run and its resumption.
        progress: Receives (label, models done, models in all).
        say: Receives one-line notes.
    """

    command = "quality"
    tables = ("quality",)
    identity_columns = ("checkpoint", "checkpoint_sha256", "dataset", "weights")

    def __init__(
        self,
        checkpoints: Sequence[Path],
        options: SubjectOptions,
        request: QualityRequest,
        *,
        recorded: Mapping[str, Any],
        progress: Progress | None,
        say: Callable[[str], None],
    ) -> None:
        self.checkpoints, self.options, self.request, self.progress = checkpoints, options, request, progress
        self.say = say
        names = ("metrics", "nfe", "weights", "samples", "subsample", "seed", "features_name")
        self.specification = {
            "table": "quality",
            **{name: getattr(request, name) for name in names},
            "dtype": str(request.dtype).removeprefix("torch."),
            **({} if request.held_out is None else {"held_out": request.held_out}),
            **recorded,
        }
        self.seeds = [request.seed]
        self.device = request.device
        self._held_out: dict[Path, Data] = {}
        self._prepared: dict[tuple[str, str], Prepared] = {}
        self._done = 0

    def subjects(self) -> Sequence[WeightsSubject]:
        """Every checkpoint with every set of weights. Held-out data are read too, so that --resume compares them."""
        from dataclasses import replace

        from mfdiag.errors import InputError
        from mfdiag.flow.couplings import REVERSED
        from mfdiag.measures.run.subject import load_subject

        subjects = []
        for path in self.checkpoints:
            for key in self.request.weights:
                options = replace(
                    self.options, weights=key, times=_ANY_TIMES
                )  # samples have none: nothing is said of them
                subject = load_subject(path, options, say=self.say, progress=self.progress)
                if subject.coupling is REVERSED:
                    raise InputError(
                        f"Expected a network that leads from noise to data, but {path} is read with --coupling "
                        "reversed, so its steps lead from data to noise. Pass the card of how it is sampled."
                    )
                subjects.append(WeightsSubject(path, key, subject))
            if self.request.held_out is not None:  # on the scale of the checkpoint's card
                options = replace(self.options, data=self.request.held_out, times=_ANY_TIMES)
                self._held_out[path] = load_subject(path, options, say=lambda _: None).data
        return subjects

    def part(self, index: int) -> QualityJob:
        """The job for one set of weights of one checkpoint."""
        import copy
        from dataclasses import replace

        job, (path, weights) = copy.copy(self), divmod(index, len(self.request.weights))
        job.checkpoints, job.progress, job.say = [self.checkpoints[path]], None, print
        job._prepared, job._held_out = {}, {}
        job.request = replace(self.request, weights=[self.request.weights[weights]], features=None)
        return job

    def identity(self, subject: WeightsSubject) -> tuple[str, ...]:
        """Checkpoint, hash, data set and weights."""
        model = subject.subject
        return tuple(map(str, (model.checkpoint, model.sha256, model.data.name, subject.weights)))

    def label(self, subject: WeightsSubject) -> str:
        """The checkpoint's name."""
        return subject.subject.checkpoint

    def doubt(self, subject: WeightsSubject) -> Doubt | None:
        """See `check_convention`."""
        import torch

        from mfdiag.measures.run.convention_check import check_convention

        request = self.request
        return check_convention(
            subject.subject,
            request.samples,
            seed=request.seed,
            dtype=request.dtype or torch.float32,
            device=request.device,
            say=self.say,
        )

    def measure(self, subject: WeightsSubject, checkpoint: PassCheckpoint) -> Mapping[str, pd.DataFrame]:
        """Table `quality` of one set of weights; data of the same name is prepared once."""
        model = subject.subject
        if self.progress is not None:
            self.progress(
                f"quality of {model.checkpoint}", self._done, len(self.checkpoints) * len(self.request.weights)
            )
        self._done += 1
        key = model.data.name, model.source.name if model.source else "gaussian"
        if key not in self._prepared:
            self._prepared[key] = self.request.prepare(model, self._held_out.get(subject.path))
        frame = self._prepared[key].measure(
            model.module,
            nfe=self.request.nfe,
            run=model.run,
            checkpoint=model.checkpoint,
            checkpoint_sha256=model.sha256,
            step=model.step,
            weights=subject.weights,
        )
        return {"quality": frame}

    def rows_to_keep(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Rows of single models; the means over seeds are computed again."""
        return frame[frame["quantity"] == "value"]

    def finish(
        self, frames: Mapping[str, pd.DataFrame], subjects: Sequence[WeightsSubject]
    ) -> Mapping[str, pd.DataFrame] | None:
        """The table with means over models that differ in the training seed alone."""
        import pandas as pd

        from mfdiag.measures.parts.quality_rows import mean_over_seeds

        rows = frames["quality"]
        names = {subject.path: subject.subject.checkpoint for subject in subjects}
        means = [mean_over_seeds(rows[rows["checkpoint"].isin(group)]) for group in _seed_groups(names)]
        return {"quality": pd.concat([rows, *means], ignore_index=True)} if means else None


def summary(title: str, rows: pd.DataFrame) -> list[Summary]:
    """A line per metric, a column per set of weights and number of steps."""
    from mfdiag.measures.parts.summary import Summary
    from mfdiag.numbers import with_error

    columns = rows[["weights", "nfe"]].drop_duplicates()
    several = columns["weights"].nunique() > 1
    headings = [
        f"{weights}, NFE {nfe}" if several else f"NFE {nfe}" for weights, nfe in columns.itertuples(index=False)
    ]
    lines = [
        (
            str(metric),
            *(with_error(value, error, 3) for value, error in zip(line["value"], line["std_error"], strict=True)),
        )
        for metric, line in rows.groupby("metric", sort=False)
    ]
    return [Summary(title, ("metric", *headings), lines, numeric=headings)]


def _seed_groups(names: Mapping[Path, str]) -> list[list[str]]:
    """Groups of at least two checkpoints, by name, whose descriptions differ in the seed alone."""
    from mfdiag.models.inspection import inspect_checkpoint

    groups: dict[str, dict[int, str]] = {}
    for path, name in names.items():
        description = inspect_checkpoint(path).description
        if description is not None:
            fields = description.model_dump(mode="json")
            seed = fields.pop("seed")
            fields["specification"].pop("seed", None)
            groups.setdefault(json.dumps(fields, sort_keys=True), {})[seed] = name
    return [list(group.values()) for group in groups.values() if len(group) > 1]
