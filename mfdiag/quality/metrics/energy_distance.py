"""Energy distance: zero only for equal laws, unbiased from samples, without a parameter to choose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.quality.metrics._base import Metric

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from mfdiag.quality.metrics._base import PairedSamples, Replicate

__all__ = ["METRIC"]


def _mean(distances: Tensor) -> float:
    """Mean over pairs of different points."""
    m = len(distances)
    return float(distances.sum() / (m * (m - 1)))


def prepare(data: Replicate) -> Callable[[PairedSamples], float]:
    within = _mean(data.yy)
    # Szekely and Rizzo 2013, equation 5: 2 E|X-Y| - E|X-X'| - E|Y-Y'|, by U-statistics
    return lambda pairs: float(2 * pairs.xy.mean()) - _mean(pairs.xx) - within


METRIC = Metric(
    name="energy_distance",
    title="energy distance, unbiased",
    paper="Székely and Rizzo 2013, J. Stat. Plan. Inference 143",
    formula="2 E|X-Y| - E|X-X'| - E|Y-Y'|",
    best=0.0,
    paired=prepare,
)
