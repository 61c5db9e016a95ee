"""Checks, before a measurement, that the declared convention is the one that explains the network best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from mfdiag.gradients.pass_types import PassSettings
from mfdiag.measures.conventions.data_scales import data_scales
from mfdiag.measures.conventions.observations import observe
from mfdiag.measures.conventions.order import DRAWN, EVALUATIONS, LEARNED, judge_order, swap_of
from mfdiag.measures.conventions.paired import judge_by_samples, memorizes
from mfdiag.measures.conventions.race import Misfit, misfit_of, race
from mfdiag.measures.conventions.scores import Scores
from mfdiag.measures.conventions.verdict import LEAST_SKILL, RATIO, Verdict, axes_in_words, judge
from mfdiag.measures.run.subject import Subject
from mfdiag.models.cards.readings import Reading, declared_reading, readings

__all__ = [
    "EVALUATIONS_PER_SAMPLE",
    "Doubt",
    "check_convention",
    "declared_scores",
    "declared_verdict",
    "long_intervals",
]

_SAMPLES = (32, 128)  # fewest and most that the check uses
_EVALUATIONS_PER_SAMPLE = 8  # of a measurement, in forward passes: the least is four forward and backward passes
_INTERVALS = (32, 256)  # fewest and most that decide the order of the times
_INTERVALS_SHARE = 0.25  # of the evaluations
_SHARE = 0.03  # of the measurement

EVALUATIONS_PER_SAMPLE = _SHARE * _EVALUATIONS_PER_SAMPLE
"""Evaluations of a large network that the check takes for each sample of a measurement."""

_WORK = 4e9  # parameters x positions x samples that take less than a second
_CALLS = 4000  # calls x modules of the network that take less than a second
_POSTERIOR = 3e8  # samples x data points x coordinates that take less than a second
_KEPT = 4


class Doubt(NamedTuple):
    """A reading that explains the network better than the declared one beyond doubt.

    Attributes:
        text: One sentence that says what was measured and what to do.
        record: The same for the manifest.
    """

    text: str
    record: dict[str, Any]


def check_convention(
    subject: Subject, samples: int, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Doubt | None:
    """Compare the declared convention with others on a few samples, by forward passes.

    It takes at most 3 % of the measurement or a second, by the size of the network, so that it does not depend on the
    machine what is tried.

    Args:
        subject: The network and the distribution of its samples.
        samples: Samples of the measurement.
        seed: Seed of the samples.
        dtype: Precision of the network.
        device: Where it runs.

    Returns:
        The doubt; None where the declared convention is not refuted.
    """
    checked = declared_verdict(subject, samples, seed=seed, dtype=dtype, device=device)
    return None if checked is None or not checked[0].refuted else _doubt(subject, *checked)


def declared_verdict(
    subject: Subject, samples: int, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Verdict, int] | None:
    """Judge the declared convention, as `check_convention` does.

    Args:
        subject: The network and the distribution of its samples.
        samples: Samples of the measurement.
        seed: Seed of the samples.
        dtype: Precision of the network.
        device: Where it runs.

    Returns:
        The verdict, and the number of samples; None where the network returns nothing finite at r = t.
    """
    scores, plausible = declared_scores(subject, samples, seed=seed, dtype=dtype, device=device)
    own = misfit_of(scores, scores.declared.reading)
    if own.velocity.min() >= 1:  # no finite output where r = t: a network such as (x_t - x_r) / (t - r) tells nothing
        return None
    verdict = _judged(scores, own, plausible)
    if not verdict.refuted and own.skill >= LEARNED and swap_of(own.reading) in plausible:
        count = _intervals(scores.networks[own.reading.weights], subject.data.shape, samples)
        verdict = judge_order(verdict, scores, long_intervals(scores, subject, count, seed), plausible)
    return verdict, len(scores.observations)


def _judged(scores: Scores, own: Misfit, plausible: Sequence[Reading]) -> Verdict:
    """The verdict on the declared reading, without the order of its times.

    Each network call serves one comparison: that by the samples where the posterior memorizes them, else that by it.
    """
    if not memorizes(scores):
        ranking = race(scores, plausible[1:], keep=_KEPT, skill=LEAST_SKILL, ceiling=RATIO * own.total)
        if ranking or scores.observations.exact:
            return judge(own, ranking)
    by_samples = judge_by_samples(scores, plausible, _KEPT).verdict
    return by_samples if by_samples.refuted else Verdict(own, None, (), False)


def long_intervals(scores: Scores, subject: Subject, count: int, seed: int) -> Scores:
    """The same network on the longest of many intervals.

    Args:
        scores: Evaluates the network.
        subject: The network and the distribution of its samples.
        count: Number of intervals.
        seed: Seed of the samples.

    Returns:
        What evaluates readings on these intervals.
    """
    observations = observe(subject.draws(seed), DRAWN * count, cost=0)
    if observations.pairs is not None:
        observations = observations.longest(count)
    return Scores(scores.declared, observations, scores.networks, scores.dtype, scores.device)


def declared_scores(
    subject: Subject, samples: int, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Scores, list[Reading]]:
    """What the check compares.

    Args:
        subject: The network and the distribution of its samples.
        samples: Samples of the measurement.
        seed: Seed of the samples.
        dtype: Precision of the network.
        device: Where it runs.

    Returns:
        The scores of the network, and the readings that are tried, the declared one first: all of them for a small
        network, else those of fewest changes.
    """
    declared = declared_reading(subject.module, subject.path)
    network = PassSettings(dtype=dtype, device=device).cast_network(declared.network)
    evaluations = _budget(network, subject.data.shape, samples)
    fewest, most = _SAMPLES
    count = int(min(max(evaluations / 16, fewest), most, max(samples, 2 * fewest)))
    observations = observe(subject.draws(seed), count, cost=_POSTERIOR)
    scales = data_scales(subject.data, observations.z.numpy())
    labeled = observations.condition is not None and subject.guidance is None
    candidates = readings(declared, scales, labeled=labeled, safe=device != "cpu")
    calls = 2 * (1 - _INTERVALS_SHARE) * evaluations / count  # half of the samples refute most readings
    affordable = _affordable(candidates, calls)
    everything = len(affordable) == len(candidates)
    scores = Scores(
        declared,
        observations,
        {declared.reading.weights: network},
        dtype,
        device,
        scales=scales if everything else (),
    )
    return scores, affordable


def _budget(network: nn.Module, shape: Sequence[int], samples: int) -> float:
    """Evaluations of the network that the check may take, for samples of a shape with channels first."""
    size = sum(parameter.numel() for parameter in network.parameters()) * math.prod(shape[1:])
    calls = _CALLS / sum(1 for _ in network.modules())
    return max(min(_WORK / max(size, 1), calls * _SAMPLES[1]), _SHARE * _EVALUATIONS_PER_SAMPLE * samples)


def _intervals(network: nn.Module, shape: Sequence[int], samples: int) -> int:
    """Intervals that decide the order of the times."""
    fewest, most = _INTERVALS
    return int(min(max(_INTERVALS_SHARE * _budget(network, shape, samples) / EVALUATIONS, fewest), most))


def _affordable(candidates: Sequence[Reading], calls: float) -> list[Reading]:
    """The readings of fewest changes that need at most so many different calls of the network."""
    different: set[object] = set()
    affordable = []
    for reading in candidates:
        different.add(_same_call(reading))
        if len(different) > calls:
            break
        affordable.append(reading)
    return affordable


def _same_call(reading: Reading) -> Reading:
    """The reading that stands for all that share a call: they differ in sign and in what is not a denoiser."""
    return replace(reading, prediction=reading.prediction if reading.denoised else "", sign=1)


def _doubt(subject: Subject, verdict: Verdict, samples: int) -> Doubt:
    assert verdict.best is not None
    declared, best = verdict.declared, verdict.best
    changes = axes_in_words(best.reading, declared.reading)
    measured = f"its misfit is {best.total:.2g} instead of {declared.total:.2g} on {samples} samples"
    if verdict.defects is not None:
        own, other = verdict.defects
        measured = f"the defect of its longest intervals is {other:.2g} instead of {own:.2g}"
    text = (
        f"Every number may be wrong: {subject.checkpoint} looks trained in another convention than it is read in. With "
        f"{changes}, {measured}. Run `mfdiag identify` with the same options, which writes a card, or correct the "
        "options."
    )
    record = {
        "checkpoint": subject.checkpoint,
        "reading": changes,
        "or": [axes_in_words(misfit.reading, declared.reading) for misfit in verdict.tied],
        "misfit": best.total,
        "declared_misfit": declared.total,
        "samples": samples,
        "text": text,
    }
    return Doubt(text, record)
