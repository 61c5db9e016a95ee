"""Density: how many balls of the data a sample of the model lies in, against how many it should."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.quality.metrics._base import Metric
from mfdiag.quality.metrics._neighbours import NEIGHBOURS, radii

if TYPE_CHECKING:
    from collections.abc import Callable

    from mfdiag.quality.metrics._base import PairedSamples, Replicate

__all__ = ["METRIC"]


def prepare(data: Replicate) -> Callable[[PairedSamples], float]:
    reach = radii(data.yy)
    # arXiv 2002.09797, section 3: unlike precision it is not led astray by one outlier of the data; 1 in expectation
    # where both laws are the same
    return lambda pairs: float((pairs.xy < reach).sum(1).double().mean() / NEIGHBOURS)


METRIC = Metric(
    name="density",
    title="mean number of the data's balls around a sample, over k = 5",
    paper="Naeem et al. 2020, arXiv 2002.09797",
    formula="mean_i sum_j 1[x_i in B(y_j, r_k(y_j))] / k",
    best=1.0,
    paired=prepare,
)
