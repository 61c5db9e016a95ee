"""Checks, before a measurement, that the declared convention is the one that explains the network best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mfdiag.gradients.pass_types import PassSettings
from mfdiag.measures.conventions.data_scales import data_scales
from mfdiag.measures.conventions.observations import observe
from mfdiag.measures.conventions.order import DRAWN, EVALUATIONS, LEARNED, is_confirmed, judge_order, swap_of
from mfdiag.measures.conventions.paired import judge_by_samples, memorizes
from mfdiag.measures.conventions.race import misfit_of, race
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

_WORK = 6e9  # multiplications that take less than a second
_CALLS = 4000  # calls x modules of the network that take less than a second
_PIECES = 6  # calls for a reading, which is evaluated on few samples first
_READINGS = 2500  # most that are compared, those of fewest changes
_SCORING = 100  # operations for each number that a network returns, as readings turn it into errors
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
    subject: Subject,
    samples: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    say: Callable[[str], None] | None = None,
) -> Doubt | None:
    """Compare the declared convention with others on a few samples, by forward passes.

    It takes at most 3 % of the measurement or a second, by the work of the network, so that it does not depend on the
    machine what is tried.

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
        say(
            f"{checked.samples} samples cannot tell whether {subject.checkpoint} was trained in the convention that it "
            f"is read in: {checked.unknown}. `mfdiag identify` compares more."
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
        long = long_intervals(scores, subject, _intervals(scores.budget), seed)
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
        ranking = race(scores, plausible[1:], keep=_KEPT, skill=LEAST_SKILL, ceiling=RATIO * own.total)
        if ranking or scores.observations.exact:
            verdict = judge(own, ranking)
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
    networks = {declared.reading.weights: network}
    one = Scores(declared, observe(subject.draws(seed), 1, cost=0), networks, dtype, device)
    evaluations, calls = _budget(network, one, samples)
    fewest, most = _SAMPLES
    count = int(min(max(evaluations / 16, fewest), most, max(samples, 2 * fewest)))
    observations = observe(subject.draws(seed), count, cost=_POSTERIOR)
    scales = data_scales(subject.data, observations.z.numpy())
    labeled = observations.condition is not None and subject.guidance is None
    candidates = readings(declared, scales, labeled=labeled, safe=device != "cpu")[:_READINGS]
    shared = len({_same_call(replace(reading, factor=1.0, shift=0.0)) for reading in candidates})
    everything = shared * len(scales) * count / 4 <= evaluations and shared * _PIECES / 2 <= calls
    single = min(2 * (1 - _INTERVALS_SHARE) * evaluations / count, calls / _PIECES)  # half refute most readings
    affordable = candidates if everything else _affordable(candidates, single)
    scores = Scores(
        declared,
        observations,
        networks,
        dtype,
        device,
        scales=scales if everything else (),
        budget=evaluations,
    )
    return scores, affordable


class _Budget(NamedTuple):
    """What the check may take: evaluations of single samples, and calls of the network."""

    evaluations: float
    calls: float


def _budget(network: nn.Module, one: Scores, samples: int) -> _Budget:
    """The budget, from a call of the network with one observation.

    Work is counted, not timed, so that what is tried does not depend on the machine.
    """
    work = _multiplications(network, one) + _SCORING * one.observations.z.numel()
    share = _SHARE * _EVALUATIONS_PER_SAMPLE * samples
    return _Budget(max(_WORK / work, share), max(_CALLS / sum(1 for _ in network.modules()), share))


def _multiplications(network: nn.Module, one: Scores) -> float:
    """Multiplications by weights in an evaluation; of a network of convolutions where no layer can be watched."""
    counts: list[float] = []

    def count(module: nn.Module, inputs: object, output: object) -> None:
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim > 1 and isinstance(output, Tensor):
            counts.append(output.numel() / len(weight) * weight.numel())

    handles = [module.register_forward_hook(count) for module in network.modules()]
    try:
        one.velocity(one.declared.reading)
    finally:
        for handle in handles:
            handle.remove()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return max(sum(counts) or parameters * math.prod(one.observations.z.shape[2:]), parameters)


def _intervals(evaluations: float) -> int:
    """Intervals that decide the order of the times."""
    fewest, most = _INTERVALS
    return int(min(max(_INTERVALS_SHARE * evaluations / EVALUATIONS, fewest), most))


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
