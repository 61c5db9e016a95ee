"""Checks, before a measurement, that the declared convention is the one that explains the network best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import thread_time
from typing import Any, NamedTuple

import torch

from mfdiag.gradients.pass_types import PassSettings
from mfdiag.measures.conventions.budget import Budget
from mfdiag.measures.conventions.cost import FEW, affordable_draws, budget_of
from mfdiag.measures.conventions.data_scales import data_scales
from mfdiag.measures.conventions.observations import longest_intervals, observe
from mfdiag.measures.conventions.order import (
    DRAWN,
    EVALUATIONS,
    LEARNED,
    affords_order,
    is_confirmed,
    judge_order,
    swap_of,
)
from mfdiag.measures.conventions.paired import judge_by_samples, memorizes
from mfdiag.measures.conventions.race import misfit_of, race
from mfdiag.measures.conventions.scores import Scores
from mfdiag.measures.conventions.verdict import LEAST_SKILL, RATIO, Verdict, axes_in_words, judge
from mfdiag.measures.run.subject import Subject
from mfdiag.models.cards.readings import Reading, declared_reading, readings

__all__ = [
    "Doubt",
    "check_convention",
    "declared_scores",
    "declared_verdict",
    "long_intervals",
]

_SAMPLES = (12, 128)  # fewest and most that the check uses
_DECLARED = 10  # evaluations for each sample of the check
_AT_INTERVALS = 16  # readings that the budget must last for where interval parts are evaluated, of three calls each
_INTERVALS = (16, 256)  # fewest and most that decide the order of the times
_INTERVALS_SHARE = 0.25  # of the budget
_READINGS = 6000  # most that are compared, those of fewest changes
_KEPT = 4
_MANY = 100  # samples of which no reading explains so much by chance as `LEAST_SKILL`
_SKILL_OF_FEW = 0.65

_CLOCK = 0.9  # seconds after which nothing more is evaluated, beyond 3 % of a measurement
_PARTS = 1.5  # calls for a reading on the average, where scales share calls
_POSTERIOR = 3e8  # samples x data points x coordinates that take a fraction of a second


class Doubt(NamedTuple):
    """A reading that explains the network better than the declared one beyond doubt.

    Attributes:
        text: One sentence that says what was measured and what to do.
        record: The same for the manifest.
    """

    text: str
    record: dict[str, Any]


def check_convention(
    subject: Subject,
    samples: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    say: Callable[[str], None] | None = None,
) -> Doubt | None:
    """Compare the declared convention with others on a few samples, by forward passes.

    It takes at most 3 % of the measurement or a second. Work is counted, so that what is tried does not depend on the
    machine; a clock stops a network that takes longer than its count says.

    Args:
        subject: The network and the distribution of its samples.
        samples: Samples of the measurement.
        seed: Seed of the samples.
        dtype: Precision of the network.
        device: Where it runs.
        say: Receives a note where these samples neither confirm nor refute the declared convention.

    Returns:
        The doubt; None where the declared convention is not refuted.
    """
    checked = _checked(subject, samples, seed=seed, dtype=dtype, device=device)
    if checked is None:
        return None
    if checked.verdict.refuted:
        return _doubt(subject, checked.verdict, checked.samples)
    if checked.unknown and say is not None:
        where = "" if subject.sha256 else ", from a file"
        say(
            f"{checked.samples} samples cannot tell whether {_name(subject)} was trained in the convention that it "
            f"is read in: {checked.unknown}. `mfdiag identify` compares more{where}."
        )
    return None


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
    checked = _checked(subject, samples, seed=seed, dtype=dtype, device=device)
    return None if checked is None else checked[:2]


class _Checked(NamedTuple):
    """A verdict, the number of samples, and why they do not confirm the declared convention; "" where they do."""

    verdict: Verdict
    samples: int
    unknown: str


def _checked(subject: Subject, samples: int, *, seed: int, dtype: torch.dtype, device: str) -> _Checked | None:
    scores, plausible = declared_scores(subject, samples, seed=seed, dtype=dtype, device=device)
    reading = scores.declared.reading
    if scores.velocity(reading).min() >= 1:  # nothing finite where r = t: as (x_t - x_r) / (t - r), it tells nothing
        return None
    verdict, unknown = _judged(scores, reading, plausible)
    if not verdict.refuted and verdict.declared.skill >= LEARNED and swap_of(reading) in plausible:
        scores.budget.held = 0
        long = long_intervals(scores, subject, _intervals(scores.budget), seed)
        if not affords_order(long):
            unknown = unknown or "its evaluations cost too much to compare the order of its times"
        else:
            verdict = judge_order(verdict, scores, long, plausible)
            if long.observations.pairs is not None and not is_confirmed(long, reading):
                unknown = unknown or "with r and t exchanged its intervals compose about as well"
    return _Checked(verdict, len(scores.observations), unknown)


def _judged(scores: Scores, reading: Reading, plausible: Sequence[Reading]) -> tuple[Verdict, str]:
    """The verdict on the declared reading, without the order of its times, and why that reading is not confirmed.

    Each network call serves one comparison: that by the samples where the posterior memorizes them, else that by it.
    """
    own = misfit_of(scores, reading)
    untrained = f"as declared, it explains too little of the velocity (skill {own.skill:.2g})"
    if not memorizes(scores):
        skill = LEAST_SKILL if len(scores.observations) >= _MANY else _SKILL_OF_FEW
        ranking = race(scores, plausible[1:], keep=_KEPT, skill=skill, ceiling=RATIO * own.total)
        if ranking or scores.observations.exact:
            verdict = judge(own, ranking, scores.tried)
            return verdict, _better(verdict) or ("" if own.skill >= LEAST_SKILL else untrained)
    swap = swap_of(reading)  # its velocity is the same, and intervals decide later
    by_samples = judge_by_samples(scores, [other for other in plausible if other != swap], _KEPT)
    if by_samples.verdict.refuted:
        return by_samples.verdict, ""
    confirmed = any(misfit.reading == reading for misfit in by_samples.ranking)
    unknown = _better(by_samples.verdict) or (
        "" if confirmed else "as declared, it denoises no better than a linear map"
    )
    return Verdict(own, None, (), False), unknown


def _better(verdict: Verdict) -> str:
    """That another reading is better, in words; "" where none is."""
    if verdict.best is None or not verdict.best.reading.changes(verdict.declared.reading):
        return ""
    words = axes_in_words(verdict.best.reading, verdict.declared.reading)
    return f"{words} fits better, but not beyond doubt"


def long_intervals(scores: Scores, subject: Subject, count: int, seed: int) -> Scores:
    """The same network on the longest of many intervals.

    Args:
        scores: Evaluates the network.
        subject: The network and the distribution of its samples.
        count: Number of intervals at most.
        seed: Seed of the samples.

    Returns:
        What evaluates readings on these intervals.
    """
    draws = subject.draws(seed)
    chosen = longest_intervals(draws, count, DRAWN * count)
    observations = observe(draws, chosen if len(chosen) else 1, cost=0)
    return Scores(scores.declared, observations, scores.networks, scores.dtype, scores.device, budget=scores.budget)


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
    start = thread_time()
    declared = declared_reading(subject.module, subject.path)
    network = PassSettings(dtype=dtype, device=device).cast_network(declared.network)
    networks = {declared.reading.weights: network}
    draws = subject.draws(seed)
    most_drawn = affordable_draws(draws, samples)
    few = Scores(declared, observe(draws, FEW, cost=0), networks, dtype, device)
    budget = budget_of(few, samples, stop=start + _CLOCK)
    budget.draws = most_drawn
    if budget.samples_left * _INTERVALS_SHARE >= _INTERVALS[0] * EVALUATIONS / 4:  # enough to see a doubt
        budget.held = _INTERVALS_SHARE * budget.seconds
    fewest, most = _SAMPLES
    count = int(min(max(min(budget.samples_left / _DECLARED, most_drawn), fewest), most, max(samples, 2 * fewest)))
    observations = observe(draws, count, cost=_POSTERIOR)
    calls = 4 * _AT_INTERVALS
    if budget.cost(calls * count, calls) > budget.left:  # velocities tell most readings apart
        observations = replace(observations, pairs=None)
    scales = tuple(data_scales(subject.data, observations.z.numpy()))
    labeled = observations.condition is not None and subject.guidance is None
    candidates = readings(declared, scales, labeled=labeled, safe=device != "cpu", most=_READINGS)
    shared = _shares_scales(candidates, len(scales), count, budget)
    scores = Scores(declared, observations, networks, dtype, device, scales=scales if shared else (), budget=budget)
    return scores, candidates


def _shares_scales(candidates: Sequence[Reading], scales: int, count: int, budget: Budget) -> bool:
    """Whether all scales of the data share a call: if the budget lasts for everything, or a call hardly costs more."""
    calls = len({(r.times, r.direction, r.time_scale, r.labels, r.denoised) for r in candidates})
    everything = budget.cost(calls * scales * count / 4, calls * _PARTS)  # one or two parts of four
    first = count / 8
    return everything <= budget.left or budget.cost(scales * first) <= 3 * budget.cost(first)


def _intervals(budget: Budget) -> int:
    """Intervals that decide the order of the times."""
    fewest, most = _INTERVALS
    return int(min(max(min(budget.samples_left / EVALUATIONS, budget.draws), fewest), most))


def _name(subject: Subject) -> str:
    """The checkpoint, or words for a model in memory."""
    return subject.checkpoint if subject.sha256 else "the model"


def _doubt(subject: Subject, verdict: Verdict, samples: int) -> Doubt:
    assert verdict.best is not None
    declared, best = verdict.declared, verdict.best
    changes = axes_in_words(best.reading, declared.reading)
    measured = f"its misfit is {best.total:.2g} instead of {declared.total:.2g} on {samples} samples"
    if verdict.defects is not None:
        own, other = verdict.defects
        measured = f"the defect of its longest intervals is {other:.2g} instead of {own:.2g}"
    text = (
        f"Every number may be wrong: {_name(subject)} looks trained in another convention than it is read in. With "
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
