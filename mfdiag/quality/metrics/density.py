"""Density: the number of data balls that a sample of the model lies in, relative to the expected number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.quality.metrics._base import Metric
from mfdiag.quality.metrics._neighbors import NEIGHBORS, neighbor_radii

if TYPE_CHECKING:
    from collections.abc import Callable

    from mfdiag.quality.metrics._base import DataSubsample, PairedSamples

__all__ = ["METRIC"]


def prepare(data: DataSubsample) -> Callable[[PairedSamples], float]:
    reach = neighbor_radii(data.yy)
    # arXiv 2002.09797, section 3: unlike precision, it is robust to an outlier of the data; its mean is 1 for equal
    # distributions (docs/theory.md#quality-paired)
    return lambda pairs: float((pairs.xy < reach).sum(1).double().mean() / NEIGHBORS)


METRIC = Metric(
    name="density",
    title="mean number of data balls that contain a sample, divided by k = 5",
    paper="Naeem et al. 2020, arXiv 2002.09797",
    formula="mean_i sum_j 1[x_i in B(y_j, r_k(y_j))] / k",
    best=1.0,
    paired=prepare,
)
