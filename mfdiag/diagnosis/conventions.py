"""`mfdiag identify`: which convention a file was trained in, by measurement (docs/theory.md#conventions)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from mfdiag.diagnosis.candidate import IDENTITY, Candidate, load_candidate
from mfdiag.diagnosis.card_writer import write_card
from mfdiag.gradients.intervals import Estimate, jackknife, skewed_jackknife
from mfdiag.gradients.moments import scalar_replicates
from mfdiag.gradients.pass_checkpoint import PassCheckpoint
from mfdiag.gradients.pass_types import PassSettings
from mfdiag.measures.conventions.data_scales import data_scales
from mfdiag.measures.conventions.observations import observe
from mfdiag.measures.conventions.order import judge_order
from mfdiag.measures.conventions.paired import Judged, judge_by_samples, memorizes
from mfdiag.measures.conventions.race import Misfit, misfit_of, race
from mfdiag.measures.conventions.scores import Errors, Scores
from mfdiag.measures.conventions.verdict import (
    LEAST_SKILL,
    Verdict,
    axes_in_words,
    difference,
    judge,
)
from mfdiag.measures.parts.rows import FEW_SAMPLES
from mfdiag.measures.run.convention_check import long_intervals
from mfdiag.measures.run.job import Job
from mfdiag.measures.run.subject import Subject, SubjectOptions
from mfdiag.models.cards.readings import Declared, Reading, readings
from mfdiag.tables.check import conform

__all__ = ["Identification", "IdentifyJob", "identify"]

_BLOCKS = 32
_RANKED = 12  # readings that the table lists
_POSTERIOR = 1e11  # samples x data points x coordinates: minutes


class Identification(NamedTuple):
    """What was measured.

    Attributes:
        verdict: What the misfits say.
        ranking: The readings that explain the network, the best first.
        errors: The errors of these readings, and of the declared one.
        exact: Whether the exact posterior was computed.
        intervals: Whether the objective has intervals r < t.
        paired: Whether the readings were compared by v_c, because the posterior memorizes the data or is not
            computed.
    """

    verdict: Verdict
    ranking: Sequence[Misfit]
    errors: Mapping[Reading, Errors]
    exact: bool
    intervals: bool
    paired: bool = False

    def sentences(self) -> list[str]:
        """The verdict in words."""
        declared, best = self.verdict.declared, self.verdict.best
        own = declared.reading
        if best is None:
            said = [
                f"No convention explains this file: as declared its misfit is {declared.total:.2g} and its skill "
                f"{declared.skill:.2g}. It looks untrained, or its convention is not among those that were tried."
            ]
        elif not best.reading.changes(own):
            said = [
                f"The declared convention fits: its misfit is {best.total:.2g}, and no other is lower significantly."
            ]
        elif self.verdict.defects is not None:
            swapped, fits = self.verdict.defects
            said = [
                f"The declared convention is refuted: with {axes_in_words(best.reading, own)}, the defect of the "
                f"longest intervals is {fits:.2g} instead of {swapped:.2g}. At r = t the two are the same."
            ]
        elif self.verdict.refuted:
            said = [
                f"The declared convention is refuted: with {axes_in_words(best.reading, own)}, the misfit is "
                f"{best.total:.2g} instead of {declared.total:.2g}."
            ]
        else:
            said = [
                f"The declared convention is not refuted, with a misfit of {declared.total:.2g}, although another fits "
                f"better, with {best.total:.2g}: {axes_in_words(best.reading, own)}."
            ]
        if self.verdict.tied:
            others = "; ".join(axes_in_words(misfit.reading, own) for misfit in self.verdict.tied)
            said.append(f"These samples cannot distinguish it from: {others}.")
        if self.paired:
            said.append(
                "Conventions were compared by how well they denoise the samples themselves, because the posterior "
                "memorizes the data or is not computed."
            )
        if not self.intervals:
            said.append("Every pair has r = t, so the order of the times and t - r are not checked.")
        return said


def identify(
    subject: Subject,
    declared: Declared,
    networks: Mapping[str, nn.Module],
    samples: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    scales: Sequence[tuple[float, float]] = (),
) -> Identification:
    """Rank the conventions that a checkpoint may have been trained in.

    Args:
        subject: The network as declared, and the distribution of its samples.
        declared: The declared convention.
        networks: The networks by key of their weights, the declared one first.
        samples: Number of samples.
        seed: Their seed.
        dtype: Precision of the networks.
        scales: Further scales that the data may have had: factors on the declared data, and shifts.

    Returns:
        The ranking and the verdict.

    Raises:
        InputError: The data cannot be drawn.
    """
    observations = observe(subject.draws(seed), samples, cost=_POSTERIOR)
    cast = PassSettings(dtype=dtype).cast_network
    cast_networks = {key: cast(network) for key, network in networks.items()}
    scales = [*data_scales(subject.data, observations.z.numpy()), *scales]
    exact = Scores(declared, observations, cast_networks, dtype, scales=tuple(scales))
    labeled = observations.condition is not None and subject.guidance is None
    candidates = readings(declared, scales, tuple(networks), labeled=labeled)
    scores, judged, ranking = _judged(exact, candidates)
    verdict = judge_order(judged, scores, long_intervals(scores, subject, samples, seed), candidates)
    if verdict.best is not None and verdict.best.reading not in {misfit.reading for misfit in ranking}:
        ranking = [*ranking, verdict.best]
    errors = {reading: exact.errors(reading) for reading in {declared.reading, *(m.reading for m in ranking)}}
    return Identification(
        verdict,
        ranking,
        {reading: parts for reading, parts in errors.items() if parts is not None},
        observations.exact,
        observations.pairs is not None,
        paired=scores is not exact,
    )


def _judged(exact: Scores, candidates: Sequence[Reading]) -> Judged:
    """What the readings are compared by, the verdict, and the ranking.

    Where the posterior memorizes the data and a reading denoises better than the linear denoiser, by v_c; else by the
    posterior's velocity. Without a posterior both take v_c, and the second decides only where the first does not.
    """
    if memorizes(exact):
        by_samples = judge_by_samples(exact, candidates, _RANKED)
        if by_samples.verdict.best is not None:
            return by_samples
    ranking = race(exact, candidates, keep=_RANKED, skill=LEAST_SKILL)
    if not ranking and not exact.observations.exact:
        by_samples = judge_by_samples(exact, candidates, _RANKED)
        if by_samples.verdict.best is not None:
            return by_samples
    return Judged(exact, judge(misfit_of(exact, exact.declared.reading), ranking), ranking)


class IdentifyJob(Job[Candidate]):
    """Identifies the convention of each checkpoint, and writes a card for it.

    Args:
        checkpoints: Files or folders of weights.
        options: How they are read.
        samples: Number of samples.
        seed: Their seed.
        dtype: Precision of the networks.
        say: Receives notes.
    """

    command = "identify"
    tables = ("identify",)
    identity_columns = IDENTITY
    device = "cpu"

    def __init__(
        self,
        checkpoints: Sequence[Path],
        options: SubjectOptions,
        samples: int,
        *,
        seed: int,
        dtype: torch.dtype,
        say: Callable[[str], None],
    ) -> None:
        self.checkpoints, self.options, self.samples, self.seed, self.dtype = checkpoints, options, samples, seed, dtype
        self.say = say
        self.seeds = [seed]
        self.specification = {
            "table": "identify",
            "samples": samples,
            "seed": seed,
            "dtype": str(dtype).removeprefix("torch."),
            **{name: getattr(options, name) for name in options.__dataclass_fields__ if name != "proxy"},
        }
        self.results: list[tuple[Candidate, Identification]] = []

    def subjects(self) -> Sequence[Candidate]:
        """Every checkpoint, loaded."""
        return [load_candidate(path, self.options, self.say) for path in self.checkpoints]

    def identity(self, subject: Candidate) -> tuple[str, ...]:
        """Checkpoint, hash, data set and sampler of (r, t)."""
        return subject.identity

    def label(self, subject: Candidate) -> str:
        """The checkpoint's name."""
        return subject.subject.checkpoint

    def measure(self, subject: Candidate, checkpoint: PassCheckpoint) -> Mapping[str, pd.DataFrame]:
        """Table `identify` of one checkpoint."""
        result = identify(
            subject.subject, subject.declared, subject.networks, self.samples, seed=self.seed, dtype=self.dtype
        )
        self.results.append((subject, result))
        return {"identify": _frame(subject, result, self.seed)}

    def files(self, out: Path) -> list[Path]:
        """The card of each checkpoint that some convention explains."""
        paths = []
        for candidate, result in self.results:
            if result.verdict.best is None:
                continue
            path = out / f"{Path(candidate.subject.checkpoint.rpartition(':')[2]).stem}.card.yaml"
            self.say(write_card(candidate, result.verdict.best.reading, path))
            paths += [path] if path.exists() else []
        return paths


def _frame(candidate: Candidate, result: Identification, seed: int) -> pd.DataFrame:
    """Rows of the ranking, then of the declared convention if it is not among them."""
    subject = candidate.subject
    common = {
        "run": subject.run,
        "checkpoint": subject.checkpoint,
        "checkpoint_sha256": subject.sha256,
        "step": subject.step,
        "dataset": subject.data.name,
        "estimator": None,
        "proxy": None,
        "weighting": None,
        "times": subject.times.name,
        "seed": seed,
    }
    rows: list[dict[str, Any]] = []
    verdict = result.verdict
    tied = {misfit.reading for misfit in verdict.tied}
    own = candidate.declared.reading
    listed = list(result.ranking)
    explaining = {misfit.reading for misfit in listed if result.paired or misfit.skill >= LEAST_SKILL}
    if own not in {misfit.reading for misfit in listed}:
        listed.append(verdict.declared)
    for rank, misfit in enumerate(listed, 1):
        reading = misfit.reading
        best = verdict.best is not None and reading == verdict.best.reading
        word = "best" if best else "tied" if reading in tied else "declared" if reading == own else "worse"
        keys = {
            "rank": rank if reading in explaining else 0,
            "reading": axes_in_words(reading, own),
            "verdict": word,
            **_axes(reading),
        }
        for quantity, estimate in _estimates(misfit, verdict.best, result.errors.get(reading)).items():
            rows.append({**common, **keys, "quantity": quantity, **_row(estimate)})
    return conform("identify", pd.DataFrame(rows))


def _row(estimate: Estimate) -> dict[str, Any]:
    """The measured columns of one value."""
    value, std_error, low, high = (float(part) for part in estimate[:4])
    few = "too_few_samples" if estimate.n_samples < FEW_SAMPLES else "ok"
    return {
        "value": value,
        "std_error": std_error,
        "ci_low": low,
        "ci_high": high,
        "n_samples": estimate.n_samples,
        "status": few if np.isfinite(value) else "nonfinite",
    }


def _axes(reading: Reading) -> dict[str, Any]:
    """The axes of a reading as columns."""
    return {
        "call": ",".join(reading.times),
        "direction": reading.direction,
        "sign": reading.sign,
        "time_scale": reading.time_scale,
        "prediction": reading.prediction,
        "data_factor": reading.factor,
        "data_shift": reading.shift,
        "weights": reading.weights,
        "labels": "dropped" if reading.labels is None else "declared" if not reading.labels else f"{reading.labels:+d}",
    }


def _estimates(misfit: Misfit, best: Misfit | None, errors: Errors | None) -> dict[str, Estimate]:
    """Every quantity of one reading, with block jackknife intervals."""

    def replicates(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return scalar_replicates(values, np.arange(len(values)) % _BLOCKS, _BLOCKS)

    mean, count = replicates(misfit.velocity + misfit.interval)
    velocity, _ = replicates(misfit.velocity)
    estimates = {
        "misfit": skewed_jackknife(mean, count, nonnegative=True),
        "skill": jackknife(1 - velocity / max(misfit.silent, 1e-12), count),
    }
    if best is not None and misfit.reading != best.reading:
        estimates["misfit_difference"] = difference(misfit, best)
    if errors is None:
        return estimates
    with np.errstate(divide="ignore", invalid="ignore"):  # a network that is zero has a defect of 0/0, which says so
        ratio = replicates(errors.velocity)[0] / replicates(errors.speed)[0]
        estimates["velocity_error"] = skewed_jackknife(ratio, count, nonnegative=True)
        medians = _medians(errors.velocity) / _medians(errors.speed)
        estimates["median_velocity_error"] = jackknife(medians, count)
        if len(errors.defect):
            defect = replicates(errors.defect)[0] / replicates(errors.step)[0]
            estimates["interval_defect"] = skewed_jackknife(defect, count, nonnegative=True)
    return estimates


def _medians(values: np.ndarray) -> np.ndarray:
    """The median of all values, then without each block."""
    block = np.arange(len(values)) % _BLOCKS
    return np.array([np.median(values), *(np.median(values[block != b]) for b in range(_BLOCKS) if (block == b).any())])
