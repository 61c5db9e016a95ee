"""What a metric of sample quality is: prepared once for the data, computed for each model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # metric files stay importable without torch, so that listing them is instant
    from torch import Tensor

    from mfdiag.gradients.moments import Estimate
    from mfdiag.quality.reference import Reference

__all__ = ["Metric", "PairedSamples", "Replicate"]


@dataclass(frozen=True)
class Replicate:
    """One subsample of the data: y [m, d], its distances yy [m, m], and the median distance of points of the data."""

    y: Tensor
    yy: Tensor
    scale: float


@dataclass(frozen=True)
class PairedSamples:
    """As many samples of a model beside it: x [m, d], distances xx [m, m] and xy [m, m] (model by data)."""

    x: Tensor
    xx: Tensor
    xy: Tensor


@dataclass(frozen=True)
class Metric:
    """One metric, given by `pooled` or by `paired`.

    `pooled` prepares a function of all samples of a model, [B, n/B, d], drawn with low discrepancy as B independent
    replicates; it returns the estimate with its interval. `paired` prepares, from one subsample of the data, a function
    of as many independent samples, which returns a number; the mean over replicates is the estimate.
    `best` is the value of a model that equals the data; `share` says that values are shares of samples, in [0, 1].
    """

    name: str
    title: str
    paper: str
    formula: str
    best: float
    share: bool = False
    pooled: Callable[[Reference], Callable[[Tensor], Estimate]] | None = None
    paired: Callable[[Replicate], Callable[[PairedSamples], float]] | None = None
