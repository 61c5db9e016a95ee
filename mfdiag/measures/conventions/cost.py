"""What the evaluations of a network cost, by a count that is the same on every machine."""

from __future__ import annotations

from math import inf, prod
from time import thread_time

import numpy as np
from torch import Tensor, nn

from mfdiag.flow.draw import Draws
from mfdiag.measures.conventions.budget import Budget
from mfdiag.measures.conventions.scores import Scores

__all__ = ["EVALUATIONS_PER_SAMPLE", "FEW", "affordable_draws", "budget_of"]

EVALUATIONS_PER_SAMPLE = 0.24
"""Evaluations of the network that the check may take for each sample of a measurement: 3 % of the least measurement,
which takes four forward and backward passes, or 8 evaluations."""

FEW = 4
"""Observations of the calls that are counted."""

_SECONDS = 0.7  # of counted work, on a core that does what follows
_MULTIPLICATIONS = 2e10  # by weights in a second
_MODULE = 3e-5  # seconds of each module in a call
_CALL = 1e-3  # seconds of a call, and of the scores of all readings that share it
_NUMBER = 2.5e-8  # seconds of each number that the network returns, as readings turn it into errors
_SHARE = 0.03  # of the samples of a measurement, which may be drawn in any case
_DRAWING = 0.15  # seconds that data may take
_MANY = 384  # samples that a check draws where it can
_LONGER = 1.5  # a call of more samples that takes so many times as long takes longer for each of them
_MISCOUNTED = 4  # a network that takes so many times its count is timed


def affordable_draws(draws: Draws, samples: int) -> float:
    """Samples that a check may draw: any number, unless the data are slow.

    Args:
        draws: The distribution of the samples.
        samples: Samples of the measurement.

    Returns:
        Their number.
    """
    for first in (0, FEW):
        start = thread_time()
        draws.batch(np.arange(first, first + FEW))
        took = thread_time() - start
        if took <= _DRAWING / _MANY * FEW:  # the first time includes what is prepared once
            return inf
    return max(_DRAWING * FEW / took, _SHARE * samples)


def budget_of(few: Scores, samples: int, *, stop: float) -> Budget:
    """The budget of a check.

    Args:
        few: Evaluates the network on `FEW` observations.
        samples: Samples of the measurement.
        stop: See `Budget`.

    Returns:
        The budget: less than a second, or 3 % of the measurement.
    """
    network = few.networks[few.declared.reading.weights]
    start = thread_time()
    multiplications = _multiplications(network, few)
    took = thread_time() - start
    per_sample = multiplications / _MULTIPLICATIONS + few.observations.z[0].numel() * _NUMBER
    per_call = _CALL + _MODULE * sum(1 for _ in network.modules())
    if took > _MISCOUNTED * (per_call + per_sample):  # or it loads libraries
        one, all_of_them = _timed(few, slice(0, 1)), _timed(few, slice(None))
        if one > _MISCOUNTED * (per_call + per_sample):
            if all_of_them > _LONGER * one:  # else the difference is noise
                per_sample = max((all_of_them - one) / (FEW - 1), per_sample)
            per_call = max(one - per_sample, per_call)
    if not few.declared.card.call.time_shape:  # the network takes one sample at a time
        per_call, per_sample = _CALL, per_call + per_sample
    share = EVALUATIONS_PER_SAMPLE * samples
    return Budget(max(_SECONDS, share * per_sample), per_call, per_sample, stop, share)


def _timed(few: Scores, rows: slice) -> float:
    """Seconds of a call with some observations."""
    start = thread_time()
    few.call(rows)
    return thread_time() - start


def _multiplications(network: nn.Module, few: Scores) -> float:
    """Multiplications by weights in an evaluation; of a network of convolutions where no layer can be watched."""
    counts: list[float] = []

    def count(module: nn.Module, inputs: object, output: object) -> None:
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim > 1 and isinstance(output, Tensor):
            counts.append(output.numel() / len(weight) * weight.numel())

    handles = [module.register_forward_hook(count) for module in network.modules()]
    try:
        few.call(slice(0, 1))
    finally:
        for handle in handles:
            handle.remove()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return max(sum(counts) or parameters * prod(few.observations.z.shape[2:]), parameters)
