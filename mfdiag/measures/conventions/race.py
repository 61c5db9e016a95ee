"""The readings that explain a network best, without evaluating every reading on every sample.

The misfit is a mean of numbers that are not negative, so the sum over some samples bounds it from below. The reading of
the least bound is evaluated on further samples until the best readings are evaluated on all: these are the best of all
readings, exactly.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mfdiag.measures.conventions.scores import Scores
from mfdiag.models.cards.readings import Reading

__all__ = ["Misfit", "exhaustive", "misfit_of", "race"]

_FIRST = 4  # samples of the first part


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
        scores: Evaluates readings.
        readings: The readings, in the order that decides between equals.
        keep: How many to return.
        skill: The least skill.
        ceiling: The greatest misfit.

    Returns:
        At most `keep` readings, the best first.
    """
    n = len(scores.observations)
    # where calls are shared, few parts save time; where each costs a forward pass, small ones save evaluations
    parts = list(_parts(n, n // 8 if scores.scales else _FIRST))
    heap = [(0.0, number, 0) for number in range(len(readings))]
    collected: dict[int, list[np.ndarray]] = {}
    best: list[Misfit] = []
    while heap and len(best) < keep:
        bound, number, done = heapq.heappop(heap)
        reading = readings[number]
        if done == 2 * len(parts):
            pieces = collected.pop(number)
            velocity, interval = np.concatenate(pieces[: len(parts)]), np.concatenate(pieces[len(parts) :])
            best.append(Misfit(reading, velocity, interval, scores.silent(reading)))
            continue
        evaluate = scores.velocity if done < len(parts) else scores.interval
        piece = evaluate(reading, parts[done % len(parts)])
        bound += float(piece.sum()) / n
        if bound > ceiling or (done < len(parts) and bound > (1 - skill) * scores.silent(reading)):
            collected.pop(number, None)
            continue
        collected.setdefault(number, []).append(piece)
        heapq.heappush(heap, (bound, number, done + 1))
    return best


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
