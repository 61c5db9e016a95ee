"""Squared maximum mean discrepancy with a Gaussian kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.quality.metrics._base import Metric

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from mfdiag.quality.metrics._base import DataSubsample, PairedSamples

__all__ = ["METRIC"]


def prepare(data: DataSubsample) -> Callable[[PairedSamples], float]:
    def kernel(distances: Tensor) -> Tensor:
        return (-(distances**2) / (2 * data.scale**2)).exp()

    def mean(distances: Tensor) -> float:
        """Mean of the kernel over pairs of different points."""
        m = len(distances)
        return float((kernel(distances).sum() - m) / (m * (m - 1)))  # k(x, x) = 1

    within = mean(data.yy)
    # Gretton et al. 2012, lemma 6: E k(X,X') + E k(Y,Y') - 2 E k(X,Y), by U-statistics (docs/theory.md#quality-paired)
    return lambda pairs: mean(pairs.xx) + within - float(2 * kernel(pairs.xy).mean())


METRIC = Metric(
    name="mmd2",
    title="squared maximum mean discrepancy, unbiased; Gaussian kernel, bandwidth the median distance of the data",
    paper="Gretton et al. 2012, JMLR 13",
    formula="E k(X,X') + E k(Y,Y') - 2 E k(X,Y), k(x,y) = exp(-|x-y|^2 / (2 h^2)), h = median |Y-Y'|",
    best=0.0,
    paired=prepare,
)
