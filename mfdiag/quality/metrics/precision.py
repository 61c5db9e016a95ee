"""Precision: the share of samples that lie where data lie."""

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
    # arXiv 1904.06991, equation 2: share of x in the union of the balls B(y_j, r_k(y_j))
    return lambda pairs: float((pairs.xy < reach).any(1).double().mean())


METRIC = Metric(
    name="precision",
    title="share of samples inside a data ball, k = 5",
    paper="Kynkäänniemi et al. 2019, arXiv 1904.06991",
    formula="mean_i 1[x_i in union_j B(y_j, r_k(y_j))]",
    best=1.0,
    share=True,
    paired=prepare,
)
