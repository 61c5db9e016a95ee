"""The readings that explain a network best, without evaluating every reading on every sample.

The misfit is a mean of numbers that are not negative, so the sum over some samples bounds it from below. The readings
of the least bound are evaluated on further samples until the best are evaluated on all: these are the best of all
readings, exactly. Readings that differ in prediction and sign share the calls of the network, so their velocity parts
are evaluated together.

Where the budget does not last for that, half of it goes to the first samples of readings, in their order. Of these, the
ones of least bound are evaluated on, as many as can be afforded.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mfdiag.measures.conventions.scores import Scores
from mfdiag.models.cards.readings import Reading

__all__ = ["Misfit", "exhaustive", "misfit_of", "race"]

_FIRST = (3, 4)  # fewest and most samples of the first part where calls are not shared
_ADMISSION = 0.6  # of the budget: what the first parts may take where it does not last for all
_EACH = 3  # evaluations of an interval


class Misfit(NamedTuple):
    """A reading that was evaluated on all samples.

    Attributes:
        reading: The reading.
        velocity: Velocity part of each sample [n].
        interval: Interval part of each sample [n].
        silent: Mean velocity part if the network returned zero.
    """

    reading: Reading
    velocity: np.ndarray
    interval: np.ndarray
    silent: float

    @property
    def total(self) -> float:
        """The misfit."""
        return float(self.velocity.mean() + self.interval.mean())

    @property
    def skill(self) -> float:
        """Fraction of the velocity part without the network that the network removes; negative if it adds to it."""
        return float(1 - self.velocity.mean() / max(self.silent, 1e-12))


def misfit_of(scores: Scores, reading: Reading) -> Misfit:
    """Evaluate a reading on all samples."""
    return Misfit(reading, scores.velocity(reading), scores.interval(reading), scores.silent(reading))


def race(
    scores: Scores, readings: Sequence[Reading], *, keep: int, skill: float, ceiling: float = np.inf
) -> list[Misfit]:
    """The readings of least misfit, among those in which the network explains enough.

    Args:
        scores: Evaluates readings, within its budget.
        readings: The readings, in the order that decides between equals.
        keep: How many to return.
        skill: The least skill.
        ceiling: The greatest misfit.

    Returns:
        At most `keep` readings, the best first.
    """
    course = _Course(scores, readings, skill, ceiling)
    heap = course.start()
    best: list[Misfit] = []
    while heap and len(best) < keep:
        _, number, runners = heapq.heappop(heap)
        if runners.parts == course.parts_in_all:
            reading = readings[number]
            interval = runners.interval if course.intervals else np.zeros(course.samples)
            best.append(Misfit(reading, runners.velocity[0], interval, scores.silent(reading)))
        else:
            for remaining in course.advance(runners):
                heapq.heappush(heap, remaining.entry)
    return best


@dataclass
class _Runners:
    """Readings whose velocity parts come from the same calls of the network; one alone once these are evaluated.

    Attributes:
        numbers: Numbers of the readings, ascending [k].
        places: Their rows in `Scores.losses` [k].
        limits: The greatest sum of the velocity part of each [k].
        bounds: Lower bounds of their misfits so far [k].
        velocity: Velocity parts so far [k, samples].
        interval: Interval parts so far, of a reading alone.
        parts: How many parts are evaluated.
    """

    numbers: np.ndarray
    places: np.ndarray
    limits: np.ndarray
    bounds: np.ndarray
    velocity: np.ndarray
    interval: np.ndarray
    parts: int = 0

    @property
    def entry(self) -> tuple[float, int, _Runners]:
        """The least bound, and the first number, which no others have."""
        return float(self.bounds.min()), int(self.numbers[0]), self

    def rows(self, chosen: np.ndarray) -> _Runners:
        """Some of them."""
        return replace(
            self,
            numbers=self.numbers[chosen],
            places=self.places[chosen],
            limits=self.limits[chosen],
            bounds=self.bounds[chosen],
            velocity=self.velocity[chosen],
        )


class _Course:
    """What all readings go through: velocity parts of all observations, then interval parts."""

    def __init__(self, scores: Scores, readings: Sequence[Reading], skill: float, ceiling: float) -> None:
        self.scores, self.readings, self.skill, self.ceiling = scores, readings, skill, ceiling
        self.samples = len(scores.observations)
        self.width = max(len(scores.scales), 1)  # samples of a call for each observation
        # where calls are shared, few parts save time; where each costs a forward pass, small ones save evaluations
        first = self.samples // 8
        self.parts = list(_parts(self.samples, first if scores.scales else int(np.clip(first, *_FIRST))))
        self.intervals = scores.observations.pairs is not None
        self.parts_in_all = len(self.parts) * (2 if self.intervals else 1)

    def start(self) -> list[tuple[float, int, _Runners]]:
        """The readings after the first part, as a heap; those that the budget does not last for are left out."""
        budget = self.scores.budget
        reserved = (1 - _ADMISSION) * budget.left
        heap = []
        self.scores.tried = 0
        for runners in self._groups():
            if budget.left < reserved or not budget.affords(self.width * self.parts[0].stop):
                break
            self.scores.tried += len(runners.numbers)
            heap += [remaining.entry for remaining in self.advance(runners)]
        heapq.heapify(heap)
        each = budget.cost(self.samples * self.width, len(self.parts))
        each += budget.cost(_EACH * self.samples, _EACH * len(self.parts)) if self.intervals else 0
        return heap if each * len(heap) <= budget.left else heapq.nsmallest(max(int(budget.left / each), 1), heap)

    def _groups(self) -> Iterator[_Runners]:
        """All readings before the first part, in their order."""
        numbers: dict[object, list[int]] = {}
        for number, reading in enumerate(self.readings):
            numbers.setdefault(self.scores.call_of(reading), []).append(number)
        for group in numbers.values():
            places = np.array([self.scores.place(self.readings[number]) for number in group])
            limits = (1 - self.skill) * self.scores.silents(self.readings[group[0]])[places]
            count, nothing = len(group), np.zeros(0)
            yield _Runners(np.array(group), places, limits, np.zeros(count), np.zeros((count, 0)), nothing)

    def advance(self, runners: _Runners) -> Iterator[_Runners]:
        """Evaluate the next part; those that can still win, each alone after the last velocity part."""
        part = self.parts[runners.parts % len(self.parts)]
        reading = self.readings[runners.numbers[0]]
        length = part.stop - part.start
        if runners.parts >= len(self.parts):
            if not self.scores.budget.affords(_EACH * length, _EACH):
                return
            piece = self.scores.interval(reading, part)
            runners.interval = np.concatenate([runners.interval, piece])
            runners.bounds = runners.bounds + piece.sum() / self.samples
            limits = np.full(1, np.inf)
        else:
            if not self.scores.budget.affords(self.width * length):
                return
            pieces = self.scores.losses(reading, part)[runners.places]
            runners.velocity = np.concatenate([runners.velocity, pieces], 1)
            runners.bounds = runners.bounds + pieces.sum(1) / self.samples
            limits = runners.limits
        runners.parts += 1
        remaining = runners.rows((runners.bounds <= self.ceiling) & (runners.bounds <= limits))
        alone = runners.parts == len(self.parts)
        together = np.arange(len(remaining.numbers))
        split = together[:, None] if alone else together[None]
        yield from (remaining.rows(rows) for rows in split if len(rows))


def exhaustive(
    scores: Scores, readings: Sequence[Reading], *, keep: int, skill: float, ceiling: float = np.inf
) -> list[Misfit]:
    """The slow twin of `race`: every reading on every sample.

    Args:
        scores: Evaluates readings.
        readings: The readings.
        keep: How many to return.
        skill: The least skill.
        ceiling: The greatest misfit.

    Returns:
        At most `keep` readings, the best first.
    """
    misfits = [misfit_of(scores, reading) for reading in readings]
    explaining = [misfit for misfit in misfits if misfit.skill >= skill and misfit.total <= ceiling]
    return sorted(explaining, key=lambda misfit: misfit.total)[:keep]


def _parts(n: int, first: int) -> Iterator[slice]:
    """Consecutive samples: some, then as many as before, so that each part doubles what is evaluated."""
    start, stop = 0, max(first, 1)
    while start < n:
        yield slice(start, min(stop, n))
        start, stop = stop, 2 * stop
