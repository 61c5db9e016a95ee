"""Coverage: the share of data points that have a sample of the model nearby."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.quality.metrics._base import Metric
from mfdiag.quality.metrics._neighbors import neighbor_radii

if TYPE_CHECKING:
    from collections.abc import Callable

    from mfdiag.quality.metrics._base import DataSubsample, PairedSamples

__all__ = ["METRIC"]


def prepare(data: DataSubsample) -> Callable[[PairedSamples], float]:
    reach = neighbor_radii(data.yy)
    # arXiv 2002.09797, section 3; its value for equal distributions is in docs/theory.md#quality-paired
    return lambda pairs: float((pairs.xy < reach).any(0).double().mean())


METRIC = Metric(
    name="coverage",
    title="share of data balls that contain a sample, k = 5",
    paper="Naeem et al. 2020, arXiv 2002.09797",
    formula="mean_j 1[some x_i in B(y_j, r_k(y_j))]",
    best=1.0,
    share=True,
    paired=prepare,
)
