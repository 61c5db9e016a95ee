"""Readings compared by v_c, where the posterior memorizes the data or is not computed (docs/theory.md#conventions)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mfdiag.measures.conventions.race import Misfit, misfit_of, race
from mfdiag.measures.conventions.scores import Scores, linear_misfit, posterior_misfit
from mfdiag.measures.conventions.verdict import Verdict, beats_linear, explains_lost, judge_paired
from mfdiag.models.cards.readings import Reading

__all__ = ["Judged", "judge_by_samples", "memorizes"]

_MEMORIZED = 0.6  # greatest error of the posterior's mean, over the linear denoiser's, where it memorizes the data


class Judged(NamedTuple):
    """A verdict and what it rests on.

    Attributes:
        scores: What the readings were compared by.
        verdict: The verdict; its `best` is None where no reading explains the network.
        ranking: The readings that explain it, the best first.
    """

    scores: Scores
    verdict: Verdict
    ranking: list[Misfit]


def memorizes(exact: Scores) -> bool:
    """Whether the posterior is computed, and its mean is nearly the sample itself."""
    observations = exact.observations
    return observations.exact and bool(
        posterior_misfit(observations).mean() <= _MEMORIZED * linear_misfit(observations).mean()
    )


def judge_by_samples(exact: Scores, candidates: Sequence[Reading], keep: int) -> Judged:
    """Compare readings by how well they denoise the samples, against a linear denoiser.

    Args:
        exact: Evaluates readings; its posterior is not used.
        candidates: The readings, the declared one among them.
        keep: How many to rank.

    Returns:
        The verdict, by scores of v_c; the ranking holds readings that denoise better than the linear denoiser.
    """
    linear = linear_misfit(exact.observations)
    paired = exact.paired
    fitting = race(paired, candidates, keep=keep, skill=-np.inf, ceiling=float(linear.mean()))
    declared = misfit_of(paired, paired.declared.reading)
    ranking = [m for m in fitting if beats_linear(m, linear) or explains_lost(m, declared, linear)]
    return Judged(paired, judge_paired(declared, ranking, linear), ranking)
