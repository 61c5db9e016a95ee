"""What a metric of sample quality is: prepared once for the data, computed for each model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # files of metrics stay importable without torch, so that listing them is fast
    from torch import Tensor

    from mfdiag.gradients.intervals import Estimate

__all__ = ["MANY_STEPS", "DataSubsample", "Metric", "PairedSamples", "Reference", "halves"]

MANY_STEPS = 32
"""Steps after which samples of a trained model hardly change any more."""


@dataclass(frozen=True)
class Reference:
    """The data in feature space, for metrics of all samples.

    Attributes:
        points: [1, N, d], all points of a finite data set, or [B, N/B, d], B independent replicates of evenly spread
            draws.
        whole: Whether `points` are all there is, so that the data add no noise.
        samples: Number of samples of each model.
        seed: Seed of the run.
        held_out: Data [n, d] of the same distribution that the model was not trained on, if there are any.
    """

    points: Tensor
    whole: bool
    samples: int
    seed: int
    held_out: Tensor | None = None


def halves(replicates: Tensor) -> list[Tensor]:
    """Every other replicate [B, n, d], and the rest."""
    return [replicates[::2], replicates[1::2]]


@dataclass(frozen=True)
class DataSubsample:
    """One subsample of the data in feature space, for metrics of pairs.

    Attributes:
        y: Points [m, d].
        yy: Distances between them, [m, m].
        scale: Median distance between two points of the data.
    """

    y: Tensor
    yy: Tensor
    scale: float


@dataclass(frozen=True)
class PairedSamples:
    """Samples of a model, as many as the data subsample has.

    Attributes:
        x: Samples [m, d].
        xx: Distances between them, [m, m].
        xy: Distances from each sample to each data point, [m, m].
    """

    x: Tensor
    xx: Tensor
    xy: Tensor


@dataclass(frozen=True)
class Metric:
    """One metric, defined by exactly one of `pooled`, `paired` and `stepwise`.

    Attributes:
        name: Name on the command line and of its file.
        title: One line for `mfdiag list metrics`.
        paper: Where the metric comes from.
        formula: Its definition in plain text.
        best: Value of a model whose distribution is that of the data.
        share: Whether the value is a share of samples, in [0, 1].
        pooled: Prepares a function of all samples of a model, [B, n/B, d], which are drawn with low discrepancy as B
            independent replicates. The function returns the estimate with its interval.
        paired: Prepares a function of as many independent samples as one subsample of the data has. The function
            returns a number; the estimate is the mean over replicates.
        stepwise: A function of samples [m, d] and of those that the same noise gives in MANY_STEPS steps. The estimate
            is the mean over replicates. It is measured only if it is asked for, because of what it costs.
        needs_held_out: Whether `pooled` needs held-out data.
    """

    name: str
    title: str
    paper: str
    formula: str
    best: float
    share: bool = False
    pooled: Callable[[Reference], Callable[[Tensor], Estimate]] | None = None
    paired: Callable[[DataSubsample], Callable[[PairedSamples], float]] | None = None
    stepwise: Callable[[Tensor, Tensor], float] | None = None
    needs_held_out: bool = False
