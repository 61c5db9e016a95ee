"""The order of r and t, which does not show at r = t: the intervals alone decide (docs/theory.md#conventions).

u(x, r, t) and u(x, t, r) have the same velocity part. In the misfit of a network that is not trained to its end, this
part is far larger than the interval part, and hides a swap. So the two are compared by their intervals, and only by the
longest ones, where r and t differ most.

A network that was trained at r = t alone, or has just begun to learn, has no order of times yet. It still depends on r
and t somehow, so that one order may have half the defect of the other, significantly. It takes more than that to refute
an order: the difference must be large against the defect of the same network without r. The less the network explains,
the larger. `benchmarks/conventions.py` measures how near such networks come to the bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mfdiag.measures.conventions.race import misfit_of
from mfdiag.measures.conventions.scores import Scores
from mfdiag.measures.conventions.verdict import LEAST_SKILL, Verdict, votes
from mfdiag.models.cards.readings import Reading

__all__ = [
    "DRAWN",
    "EVALUATIONS",
    "LEARNED",
    "RATIO",
    "Order",
    "affords_order",
    "is_confirmed",
    "judge_order",
    "order_of",
    "swap_of",
]

EVALUATIONS = 11
"""Evaluations of the network for each interval, at most."""

DRAWN = 4
"""Intervals to draw for each that is used."""

RATIO = 0.25
"""Greatest defect of the swap, over that of the declared order, that refutes it."""

LEARNED = 0.2
"""Least skill of a network of which anything is said."""

_SCREENED = 0.25  # of the intervals, the longest: they show whether the others are worth their evaluations
_DOUBTFUL = 0.75  # greatest defect of the swap, over that of the declared order, of an order that is in doubt

_EFFECTS = {LEAST_SKILL: 0.1, LEARNED: 1.0}  # by skill, the least difference over the defect without r
_LEVEL = 1 - 1e-3
_INTERVAL = 3  # evaluations of an interval


@dataclass(frozen=True)
class Order:
    """Interval parts of a reading and of its swap on the same intervals, each [n].

    Attributes:
        declared: Of the reading.
        swapped: Of the reading with r and t exchanged.
        instantaneous: Of a network that ignores r: u(x, t, t) in place of u(x, r, t).
    """

    declared: np.ndarray
    swapped: np.ndarray
    instantaneous: np.ndarray

    @property
    def ratio(self) -> float:
        """Defect of the swap over that of the reading."""
        return float(self.swapped.mean() / max(self.declared.mean(), 1e-300))

    @property
    def effect(self) -> float:
        """What the swap removes, over the defect of a network that ignores r."""
        return float((self.declared - self.swapped).mean() / max(self.instantaneous.mean(), 1e-300))

    def refuted(self, skill: float) -> bool:
        """Whether the swap explains the intervals better beyond doubt.

        Args:
            skill: Skill of the network.

        Returns:
            Whether the declared order is refuted.
        """
        effect = next((effect for least, effect in _EFFECTS.items() if skill >= least), np.inf)
        large = self.ratio <= RATIO and self.effect >= effect
        return bool(large and votes(self.declared, self.swapped, _LEVEL).low > 0)


def swap_of(reading: Reading) -> Reading | None:
    """The reading with r and t exchanged.

    Args:
        reading: The reading.

    Returns:
        The other one; None for t - r, whose place shows at r = t.
    """
    return None if "h" in reading.times else replace(reading, times=(reading.times[1], reading.times[0]))


def order_of(scores: Scores, reading: Reading) -> Order | None:
    """Measure a reading and its swap.

    Args:
        scores: Evaluates readings; all of its intervals are used.
        reading: The reading.

    Returns:
        The interval parts; None where there are no intervals, or no swap.
    """
    swap = swap_of(reading)
    if swap is None or scores.observations.pairs is None:
        return None
    ignoring = replace(reading, times=("t", "t"))
    return Order(scores.interval(reading), scores.interval(swap), scores.interval(ignoring))


def affords_order(long: Scores) -> bool:
    """Whether the budget lasts for the longest intervals in both orders.

    Args:
        long: Evaluates readings on intervals, the longest first.

    Returns:
        Whether it does.
    """
    return long.budget.affords(2 * _INTERVAL * _screened(long).stop, 2 * _INTERVAL)


def _screened(long: Scores) -> slice:
    return slice(0, max(int(_SCREENED * len(long.observations)), 1))


def is_confirmed(long: Scores, reading: Reading) -> bool:
    """Whether the longest intervals speak for the order of a reading: the swap has clearly more defect.

    Args:
        long: Evaluates readings on intervals, the longest first.
        reading: The reading, which has a swap.

    Returns:
        Whether they do.
    """
    return _screened_ratio(long, reading) * _DOUBTFUL >= 1


def _screened_ratio(long: Scores, reading: Reading) -> float:
    """Defect of the swap over that of a reading, on the longest intervals alone; 1 where there are none."""
    swap = swap_of(reading)
    if swap is None or long.observations.pairs is None:
        return 1.0
    if reading not in long.screened:
        declared, swapped = (float(long.interval(one, _screened(long)).mean()) for one in (reading, swap))
        long.screened[reading] = swapped / max(declared, 1e-300)
    return long.screened[reading]


def judge_order(verdict: Verdict, scores: Scores, long: Scores, candidates: Sequence[Reading]) -> Verdict:
    """Refute a declared reading that explains the velocity, but whose swap explains the intervals better.

    Args:
        verdict: What the misfits say.
        scores: What they were computed by.
        long: Evaluates readings on long intervals.
        candidates: The readings that the network may have been trained in.

    Returns:
        The verdict itself, or that for the swap.
    """
    declared = verdict.declared
    swap = swap_of(declared.reading)
    if verdict.refuted or declared.skill < LEARNED or swap is None or swap not in candidates:
        return verdict
    if _screened_ratio(long, declared.reading) > _DOUBTFUL:
        return verdict
    count = len(long.observations)
    order = order_of(long, declared.reading) if long.budget.affords(3 * _INTERVAL * count, 3 * _INTERVAL) else None
    if order is None or not order.refuted(declared.skill):
        return verdict
    defects = float(order.declared.mean()), float(order.swapped.mean())
    return Verdict(declared, misfit_of(scores, swap), (), True, defects)
