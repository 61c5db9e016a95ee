"""Recall: the share of the data that lies where samples lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.quality.metrics._base import Metric
from mfdiag.quality.metrics._neighbors import neighbor_radii

if TYPE_CHECKING:
    from collections.abc import Callable

    from mfdiag.quality.metrics._base import DataSubsample, PairedSamples

__all__ = ["METRIC"]


def prepare(data: DataSubsample) -> Callable[[PairedSamples], float]:
    # arXiv 1904.06991, equation 2 with the roles exchanged: share of y in the union of the balls B(x_i, r_k(x_i))
    return lambda pairs: float((pairs.xy < neighbor_radii(pairs.xx)[:, None]).any(0).double().mean())


METRIC = Metric(
    name="recall",
    title="share of the data inside a sample ball, k = 5",
    paper="Kynkäänniemi et al. 2019, arXiv 1904.06991",
    formula="mean_j 1[y_j in union_i B(x_i, r_k(x_i))]",
    best=1.0,
    share=True,
    paired=prepare,
)
