"""Wasserstein-2 distance between subsamples, by optimal assignment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.quality.metrics._base import Metric

if TYPE_CHECKING:
    from collections.abc import Callable

    from mfdiag.quality.metrics._base import DataSubsample, PairedSamples

__all__ = ["METRIC"]


def prepare(data: DataSubsample) -> Callable[[PairedSamples], float]:
    from scipy.optimize import linear_sum_assignment

    def distance(pairs: PairedSamples) -> float:
        # between two sets of m equally weighted points, an optimal coupling is a permutation (Birkhoff)
        cost = (pairs.xy**2).cpu().numpy()
        return float(cost[linear_sum_assignment(cost)].mean() ** 0.5)

    return distance


METRIC = Metric(
    name="wasserstein_2",
    title="exact Wasserstein-2 distance between subsamples; above zero also for equal distributions",
    paper="Peyré and Cuturi 2019, arXiv 1803.00567, section 2.2",
    formula="E sqrt(min over permutations s of mean_i |x_i - y_s(i)|^2)",
    best=0.0,
    paired=prepare,
)
