"""Precision: how many samples of the model lie where data are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.quality.metrics._base import Metric
from mfdiag.quality.metrics._neighbours import radii

if TYPE_CHECKING:
    from collections.abc import Callable

    from mfdiag.quality.metrics._base import PairedSamples, Replicate

__all__ = ["METRIC"]


def prepare(data: Replicate) -> Callable[[PairedSamples], float]:
    reach = radii(data.yy)
    # arXiv 1904.06991, equation 2: share of x in the union of the balls B(y_j, r_k(y_j))
    return lambda pairs: float((pairs.xy < reach).any(1).double().mean())


METRIC = Metric(
    name="precision",
    title="share of samples within reach of the data, k = 5",
    paper="Kynkäänniemi et al. 2019, arXiv 1904.06991",
    formula="mean_i 1[x_i in union_j B(y_j, r_k(y_j))]",
    best=1.0,
    share=True,
    paired=prepare,
)
