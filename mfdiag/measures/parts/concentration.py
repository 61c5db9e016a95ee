"""How a few samples dominate the gradient: docs/theory.md#concentration."""

from __future__ import annotations

import math
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from mfdiag.flow.data.datasets import Data
from mfdiag.gradients.intervals import Estimate, skewed_interval

__all__ = [
    "FINITE_ERROR",
    "FINITE_VARIANCE",
    "LIGHT",
    "heaviest_tail",
    "heavy_data",
    "heavy_tails",
    "largest_samples",
    "tail_index",
    "tail_status",
    "top_share",
    "top_share_status",
    "variance_tails",
]

_TOP = 0.01  # "the largest 1 % of samples"
_FEWEST_TOP = 20  # of these samples: with fewer, the interval of their share covers too little
_TAIL = 0.05  # Hill's estimator over the largest 5 %: enough order statistics for its error, few enough to be the tail
_FEWEST_TAIL = 25  # of these samples: with fewer, tail indices of 1 and 2 look alike
FINITE_VARIANCE = 1.0
"""The tail index of squared norms above which the vectors have a finite variance, so that their mean has an error."""

LIGHT = 1.3
"""If the tail index of gradients may lie below, no interval of their variance covers (docs/theory.md#intervals)."""

FINITE_ERROR = 2.0
"""The tail index of squared norms above which the estimate of their mean has a finite standard error.

Residuals of data with light tails have a larger one, so that their variance is held to it. Gradients come close to it.
"""

_DOUBTFUL = 2 * FINITE_ERROR  # where the samples' own tail index may lie below, the data are asked too
_DATA_POINTS = 20_000  # far more than the largest samples of a run show
_DATA_NUMBERS = 1 << 24  # in all
_data_tails: WeakKeyDictionary[Data, float] = WeakKeyDictionary()  # of data asked for, as the next table asks again
_DATA_TOP = 0.01  # enough points for their tail index, and nearer to the tail than the largest 5 %


def top_share(norms: np.ndarray) -> Estimate:
    """Share of the total that the largest 1 % of values [N] carry (a fractional sample counts in part)."""
    ordered, count = np.sort(norms)[::-1], _TOP * len(norms)
    whole = int(count)
    edge = ordered[whole]
    share = (ordered[:whole].sum() + (count - whole) * edge) / ordered.sum()
    # the share is a smooth function of the means of what exceeds the edge and of all values
    influence = (np.maximum(norms - edge, 0) + _TOP * edge - share * norms) / norms.mean()
    return skewed_interval(share, influence)


def top_share_status(norms: np.ndarray, data: Data) -> str | None:
    """Why the share of the largest 1 % of values [N], of samples from `data`, has no interval to trust, or None."""
    return "too_few_samples" if _TOP * len(norms) < _FEWEST_TOP else heaviest_tail(norms[:, None], data)


def tail_index(norms: np.ndarray, top: float = _TAIL) -> Estimate:
    """Hill's estimator of the tail index over the largest values [N]; at 2 or below, no finite variance.

    The interval is Student's t for the logarithm of the mean excess over the threshold, with the excesses' own spread.

    Args:
        norms: The values, [N].
        top: The share of them that it looks at.

    Returns:
        The estimate, a scalar.
    """
    k = max(2, int(top * len(norms)))
    largest = np.sort(norms)[-k - 1 :]
    with np.errstate(divide="ignore", invalid="ignore"):
        excesses = np.log(largest[1:] / largest[0])
        index = np.asarray(k / excesses.sum())
        error = excesses.std(ddof=1) / k**0.5 * index  # relative
        spread = np.exp(stdtrit(k - 1, 0.975) * error)
        return Estimate(index, index * error, index / spread, index * spread, len(norms))


def tail_status(norms: np.ndarray, light: float = LIGHT) -> str | None:
    """Why a variance of vectors with these squared norms [N] has no interval to trust, or None.

    Args:
        norms: Squared norms, [N].
        light: The tail index above which an interval covers.

    Returns:
        heavy_tail if the interval of the tail index reaches below `light`, too_few_samples if too few samples, or too
        few that are not zero, are there to tell, else None.
    """
    if not norms.any():
        return None
    if _TAIL * len(norms) < _FEWEST_TAIL or np.count_nonzero(norms) <= int(_TAIL * len(norms)):
        return "too_few_samples"
    return "heavy_tail" if tail_index(norms).low < light else None


def heavy_tails(norms: np.ndarray, data: Data, light: float) -> np.ndarray:
    """Where the tail of the samples, or of their data, leaves no interval to trust.

    A run whose samples happen to miss the tail also has a variance that is too low. So where their tail index does not
    exclude a heavy tail by far, the tail of the data decides, of which there are more points and none of the run's.

    Args:
        norms: Squared norms of each sample's vectors, [N, P].
        data: What the samples are drawn from.
        light: The tail index of the norms above which an interval covers: `FINITE_VARIANCE` for means,
            `FINITE_ERROR` for variances of residuals, `LIGHT` for those of gradients and for coefficients.

    Returns:
        heavy_tail or None, [P].
    """
    return _with_data([tail_status(one, light) for one in norms.T], norms, data)


def _with_data(own: list[str | None], norms: np.ndarray, data: Data) -> np.ndarray:
    """heavy_tail or None, [P], of the samples' own statuses and the tail of the data."""
    statuses = np.array([status if status == "heavy_tail" else None for status in own], dtype=object)
    unsure = [k for k, status in enumerate(statuses) if status is None and norms[:, k].any()]
    doubtful = any(own[k] or tail_index(norms[:, k]).low < _DOUBTFUL for k in unsure)
    if doubtful and heavy_data(data, FINITE_ERROR):
        statuses[unsure] = "heavy_tail"
    return statuses


def variance_tails(norms: np.ndarray, data: Data, light: float = LIGHT) -> np.ndarray:
    """Why variances of vectors have no interval to trust: `heavy_tails`, or too few samples to tell.

    Args:
        norms: Squared norms of each sample's vectors, [N, P].
        data: What the samples are drawn from.
        light: As in `heavy_tails`.

    Returns:
        Statuses or None, [P].
    """
    own = [tail_status(one, light) for one in norms.T]
    statuses = _with_data(own, norms, data)
    statuses[[status == "too_few_samples" for status in own]] = "too_few_samples"
    return statuses


def heaviest_tail(norms: np.ndarray, data: Data) -> str | None:
    """`variance_tails` of the worst of several vectors, squared norms [N, K]."""
    return next(filter(None, variance_tails(norms, data)), None)


def heavy_data(data: Data, light: float) -> bool:
    """Whether the tail index of the squared distance of data points to their mean may lie below `light`."""
    if data not in _data_tails:
        size = int(np.clip(_DATA_NUMBERS // math.prod(data.shape), _FEWEST_TAIL / _DATA_TOP, _DATA_POINTS))
        points, _ = data.sample(np.random.default_rng(0).random((size, data.width)))
        centered = points.reshape(size, -1) - points.reshape(size, -1).mean(0)
        _data_tails[data] = float(tail_index(np.einsum("nd,nd->n", centered, centered), _DATA_TOP).low)
    return _data_tails[data] < light


def largest_samples(samples: pd.DataFrame, count: int = 5) -> pd.DataFrame:
    """The `count` rows of largest |G|^2 for each model and estimator, from the table `samples`.

    A column `share` says what part of the sum over all samples each is.
    """
    norms = samples[samples["quantity"] == "grad_norm2"]
    groups = norms.groupby(["checkpoint", "step", "dataset", "proxy", "times", "estimator"], dropna=False, sort=False)
    share = norms["value"] / groups["value"].transform("sum")
    largest = groups["value"].rank(ascending=False, method="first") <= count
    order = groups.ngroup()[largest].to_frame("group").assign(value=-norms["value"]).sort_values(["group", "value"])
    return norms.assign(share=share).loc[order.index]
