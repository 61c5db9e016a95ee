"""Energy distance: zero for equal distributions only, unbiased, without a parameter to choose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.quality.metrics._base import Metric

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from mfdiag.quality.metrics._base import DataSubsample, PairedSamples

__all__ = ["METRIC"]


def _mean_of_pairs(distances: Tensor) -> float:
    """Mean over pairs of different points."""
    m = len(distances)
    return float(distances.sum() / (m * (m - 1)))


def prepare(data: DataSubsample) -> Callable[[PairedSamples], float]:
    within = _mean_of_pairs(data.yy)
    # Székely and Rizzo 2013, equation 5: 2 E|X-Y| - E|X-X'| - E|Y-Y'|, by U-statistics (docs/theory.md#quality-paired)
    return lambda pairs: float(2 * pairs.xy.mean()) - _mean_of_pairs(pairs.xx) - within


METRIC = Metric(
    name="energy_distance",
    title="energy distance, unbiased",
    paper="Székely and Rizzo 2013, J. Stat. Plan. Inference 143",
    formula="2 E|X-Y| - E|X-X'| - E|Y-Y'|",
    best=0.0,
    paired=prepare,
)
