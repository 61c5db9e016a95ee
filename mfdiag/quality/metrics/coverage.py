"""Coverage: how many points of the data have a sample of the model nearby."""

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
    # arXiv 2002.09797, section 3; for equal laws and m samples of each, 1 - (m-1)...(m-k) / ((2m-1)...(2m-k))
    return lambda pairs: float((pairs.xy < reach).any(0).double().mean())


METRIC = Metric(
    name="coverage",
    title="share of the data whose ball holds a sample, k = 5",
    paper="Naeem et al. 2020, arXiv 2002.09797",
    formula="mean_j 1[some x_i in B(y_j, r_k(y_j))]",
    best=1.0,
    share=True,
    paired=prepare,
)
