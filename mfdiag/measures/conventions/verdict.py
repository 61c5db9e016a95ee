"""What the misfits say: which reading explains a network, which others do as well, and whether the declared one does.

The bounds lie between what `benchmarks/conventions.py` measures on networks at every stage of training, read as they
were trained, and on trained networks in other conventions. docs/conventions.md has its results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mfdiag.gradients.intervals import Estimate, jackknife
from mfdiag.gradients.moments import scalar_replicates
from mfdiag.measures.conventions.race import Misfit
from mfdiag.models.cards.readings import Reading

__all__ = [
    "LEAST_SKILL",
    "RATIO",
    "Verdict",
    "axes_in_words",
    "beats_linear",
    "difference",
    "explains_lost",
    "judge",
    "judge_paired",
    "votes",
]

LEAST_SKILL = 0.5
"""Least skill of a reading that explains a network. Networks before training stay below in every reading."""

RATIO = 0.45
"""Greatest misfit of another reading, over that of the declared one, that refutes it."""

_RATIOS = {0.6: RATIO, LEAST_SKILL: 0.3}  # the same by the skill of the other reading: chance fits explain little
_LINEAR = 0.97
"""Greatest velocity part of a reading, over the linear denoiser's, that explains a network without the posterior."""

_BY_CHANCE = 0.95
"""The same where the declared reading is no worse than `_WRONG`: early networks fit another by chance, to 0.956."""

_WRONG = 1.25
"""Least velocity part of a declared reading, over the linear denoiser's, that is refuted without the posterior."""

_LOST = -0.1
"""Greatest skill of a declared reading whose output only adds error. Then another one counts that explains a part."""

_PART = 0.2  # least skill that does, in a reading no worse than the linear denoiser

_SCALE = 0.01
_MARGIN = 0.015  # least difference that does
_LEVEL = 1 - 1e-5  # of the interval of the relative difference that must exclude zero
_TRIED = 4000  # readings that it allows for; where fewer are tried, one of them fits by chance more rarely
_BLOCKS = 32


class Verdict(NamedTuple):
    """What the misfits say.

    Attributes:
        declared: The declared reading.
        best: The reading that explains the network best; of those that do not differ significantly, the one with
            fewest changes. None where no reading explains it.
        tied: The other readings that do not differ significantly from it.
        refuted: Whether `best` explains the network better than the declared reading beyond doubt.
        defects: Interval parts of the declared reading and of `best` on long intervals, where these refute it; None
            where the misfits do.
    """

    declared: Misfit
    best: Misfit | None
    tied: Sequence[Misfit]
    refuted: bool
    defects: tuple[float, float] | None = None


def difference(misfit: Misfit, other: Misfit, level: float = 0.95) -> Estimate:
    """The misfit of one reading minus that of another on the same samples, with a block jackknife interval.

    Args:
        misfit: The one.
        other: The other.
        level: Coverage of the interval.

    Returns:
        The difference.
    """
    return _estimate(misfit.velocity + misfit.interval - other.velocity - other.interval, level)


def _estimate(values: np.ndarray, level: float) -> Estimate:
    """The mean of one number per sample."""
    return jackknife(*scalar_replicates(values, np.arange(len(values)) % _BLOCKS, _BLOCKS), level, bounded=True)


def votes(a: np.ndarray, b: np.ndarray, level: float) -> Estimate:
    """Mean of (a - b) / (a + b), with a block jackknife interval.

    Each sample has the same weight, so that a few of large misfit do not hide what the others agree on.

    Args:
        a: One number per sample [n], none negative.
        b: The same for another reading.
        level: Coverage of the interval.

    Returns:
        The mean.
    """
    return _estimate((a - b) / np.maximum(a + b, 1e-12), level)


def judge(declared: Misfit, ranking: Sequence[Misfit], tried: int = _TRIED) -> Verdict:
    """Judge the declared reading.

    Args:
        declared: The declared reading.
        ranking: The readings that explain the network, the best first.
        tried: How many readings were compared.

    Returns:
        The verdict.
    """
    if not ranking:
        return Verdict(declared, None, (), False)
    least = ranking[0]
    equals = [m for m in ranking if _same_scale(m.reading, least.reading) or difference(m, least).low <= 0]
    best = min(equals, key=lambda misfit: len(misfit.reading.changes(declared.reading)))
    tied = [misfit for misfit in equals if misfit is not best]
    level = 1 - (1 - _LEVEL) * max(1.0, _TRIED / max(tried, 1))
    return Verdict(declared, best, tied, _refutes(best, declared, level))


def _same_scale(reading: Reading, other: Reading) -> bool:
    """Whether readings are equal but for scales of the data that are nearer than a network learns them: one percent."""
    near = abs(reading.factor - other.factor) <= _SCALE * abs(other.factor)
    return near and replace(reading, factor=other.factor) == other


def beats_linear(misfit: Misfit, linear: np.ndarray) -> bool:
    """Whether a reading denoises better than the linear denoiser beyond doubt, both against v_c.

    Args:
        misfit: The reading on `Observations.paired`.
        linear: The linear denoiser's part of each sample [n].

    Returns:
        Whether it does. Networks before training, and wrong readings of trained ones, do not.
    """
    below = misfit.velocity.mean() <= _LINEAR * linear.mean()
    return bool(below and votes(linear, misfit.velocity, _LEVEL).low > 0)


def explains_lost(misfit: Misfit, declared: Misfit, linear: np.ndarray) -> bool:
    """Whether a reading explains a part of what the declared one is worse at than a network that returns zero.

    A network that has not learned to beat the linear denoiser can still show in which convention it was trained.

    Args:
        misfit: The reading on `Observations.paired`.
        declared: The declared reading on the same.
        linear: The linear denoiser's part of each sample [n].

    Returns:
        Whether it does.
    """
    no_worse = misfit.velocity.mean() <= linear.mean()
    return bool(declared.skill <= _LOST and misfit.skill >= _PART and no_worse)


def judge_paired(declared: Misfit, ranking: Sequence[Misfit], linear: np.ndarray) -> Verdict:
    """Judge the declared reading without the posterior, where the data are few and of many dimensions.

    The variance of v_c given x_t is a part of every misfit, so ratios of misfits say little. The declared reading is
    refuted where it is clearly worse than the linear denoiser, while another one is better.

    Args:
        declared: The declared reading on `Observations.paired`.
        ranking: Readings that explain the network by `beats_linear` or `explains_lost`, the best first.
        linear: The linear denoiser's part of each sample [n].

    Returns:
        The verdict.
    """
    wrong = declared.velocity.mean() >= _WRONG * linear.mean() and votes(declared.velocity, linear, _LEVEL).low > 0
    if not wrong and not beats_linear(declared, linear):
        ranking = [misfit for misfit in ranking if misfit.velocity.mean() <= _BY_CHANCE * linear.mean()]
    verdict = judge(declared, ranking)
    if verdict.best is None:
        return verdict
    better = votes(declared.velocity + declared.interval, verdict.best.velocity + verdict.best.interval, _LEVEL).low > 0
    changed = bool(verdict.best.reading.changes(declared.reading))
    return verdict._replace(refuted=bool(changed and wrong and better))


def _refutes(best: Misfit, declared: Misfit, level: float) -> bool:
    """Whether a reading explains the network better than the declared one beyond doubt."""
    a, b = declared.velocity + declared.interval, best.velocity + best.interval
    changes = best.reading.changes(declared.reading)
    if changes.keys() == {"weights"} and declared.skill >= LEAST_SKILL:  # two good sets of weights, one convention
        return False
    ratio = next((ratio for least, ratio in _RATIOS.items() if best.skill >= least), 0.0)
    return bool(
        changes
        and best.total <= ratio * declared.total
        and declared.total - best.total >= _MARGIN
        and votes(a, b, level).low > 0
    )


def axes_in_words(reading: Reading, declared: Reading) -> str:
    """The changes of a reading as the fields of a card, on one line; "as declared" where there are none."""
    changes = reading.changes(declared)
    words = {
        "times": lambda value: f"call passes {value[0]} and {value[1]} instead of {' and '.join(declared.times)}",
        "direction": lambda value: f"convention.direction {value}",
        "sign": lambda value: f"output.sign {value}",
        "time_scale": lambda value: f"call.time_scale {value:g}",
        "prediction": lambda value: f"output.prediction {value}",
        "data": lambda value: f"data times {value[0]:.6g}" + (f" plus {value[1]:.6g}" if value[1] else ""),
        "weights": lambda value: f"weights {value}",
        "labels": lambda value: "no labels" if value is None else f"class numbers plus {value}",
    }
    return ", ".join(words[name](value) for name, value in changes.items()) or "as declared"
