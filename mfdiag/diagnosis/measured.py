"""One measurement of the doctor, and ratios and means of numbers per sample with block jackknife intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from mfdiag.gradients.cells import Box
from mfdiag.gradients.intervals import Estimate, jackknife, skewed_jackknife
from mfdiag.gradients.moments import scalar_replicates

__all__ = ["Measured", "bins", "blocks", "exactly", "mean_of", "one_minus", "ratio", "squares"]

_BLOCKS = 32
_TIME_BINS = 10


class Measured(NamedTuple):
    """One measurement of table `doctor`.

    Attributes:
        quantity: What was measured.
        estimate: Its value.
        box: Where in (r, t).
        keys: Values of key columns.
        tail: Why the tails of the samples leave no interval to trust; None where they do.
    """

    quantity: str
    estimate: Estimate
    box: Box = Box()
    keys: Mapping[str, Any] = {}
    tail: str | None = None


def ratio(numerator: np.ndarray, denominator: np.ndarray, *, nonnegative: bool = True) -> Estimate:
    """The ratio of two means, with a block jackknife interval.

    Args:
        numerator: One number per sample [n].
        denominator: The same for the mean below.
        nonnegative: Whether the ratio cannot be negative in truth.

    Returns:
        The ratio.
    """
    above, count = scalar_replicates(numerator, *blocks(len(numerator)))
    below, _ = scalar_replicates(denominator, *blocks(len(denominator)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return skewed_jackknife(above / below, count, nonnegative=nonnegative)


def blocks(n: int) -> tuple[np.ndarray, int]:
    """The jackknife block of each of n samples, and the number of blocks."""
    return np.arange(n) % _BLOCKS, _BLOCKS


def mean_of(values: np.ndarray) -> Estimate:
    """The mean of one number per sample [n], with a block jackknife interval."""
    return jackknife(*scalar_replicates(values, *blocks(len(values))))


def exactly(value: float, n: int) -> Estimate:
    """A number that is computed, from n others, so that it has no error."""
    whole = np.asarray(value)
    return Estimate(whole, np.asarray(np.nan), whole, whole, n)


def one_minus(estimate: Estimate) -> Estimate:
    """1 minus an estimate."""
    return estimate._replace(value=1 - estimate.value, low=1 - estimate.high, high=1 - estimate.low)


def bins(t: np.ndarray) -> Iterator[tuple[Box, np.ndarray]]:
    """Bins of t with a mask [n] of the samples in each, where there are some."""
    number = np.minimum((t * _TIME_BINS).astype(int), _TIME_BINS - 1)
    for k in range(_TIME_BINS):
        if (number == k).sum() > 1:
            yield Box(None, None, k / _TIME_BINS, (k + 1) / _TIME_BINS), number == k


def squares(x: Tensor) -> np.ndarray:
    """Squared norms [n] of x [n, *shape]."""
    return x.flatten(1).square().sum(1).numpy()
