"""Memorization: how often a sample is nearer to the training data than held-out data are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.quality.metrics._base import Metric

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from mfdiag.gradients.intervals import Estimate
    from mfdiag.quality.metrics._base import Reference

__all__ = ["METRIC"]

_ROWS = 1024  # points whose distances to all training data are held in memory


def _nearest(points: Tensor, data: Tensor) -> Tensor:
    """Distance [n] of each point [n, d] to the nearest of the data [N, d]."""
    import torch

    return torch.cat([torch.cdist(part, data).amin(1) for part in points.split(_ROWS)])


def _shares(values: Tensor, others: Tensor) -> Tensor:
    """Share [n] of the others [m] that each value lies below; ties count half."""
    import torch

    ordered = others.sort().values
    above = len(ordered) - torch.searchsorted(ordered, values, right=True)
    equal = len(ordered) - torch.searchsorted(ordered, values) - above
    return (above + equal / 2).double() / len(ordered)


def prepare(reference: Reference) -> Callable[[Tensor], Estimate]:
    from mfdiag.quality.intervals import estimate_from_influence

    assert reference.held_out is not None
    data = reference.points.flatten(0, -2)
    fresh = _nearest(reference.held_out, data)

    def memorization(samples: Tensor) -> Estimate:
        own = _nearest(samples.flatten(0, -2), data)
        # a U-statistic of two samples (Mann and Whitney): its influences are the mean of 1[d(x) < d(h)] over the other
        of_samples = _shares(own, fresh).reshape(len(samples), -1)
        of_fresh = 1 - _shares(fresh, own)
        value = float(of_samples.mean())
        rest = len(of_fresh) % len(samples)
        blocks = [of_samples.mean(1), of_fresh[rest:].reshape(len(samples), -1).mean(1)]
        return estimate_from_influence(value, value, blocks, own.numel())

    return memorization


METRIC = Metric(
    name="memorization",
    title="share of samples nearer to the training data than held-out data are; 1/2 if nothing is memorized",
    paper="Meehan et al. 2020, arXiv 2004.05675",
    formula="P(min_j |x - y_j| < min_j |h - y_j|), sample x, held-out h, training data y_j",
    best=0.5,
    share=True,
    pooled=prepare,
    needs_held_out=True,
)
