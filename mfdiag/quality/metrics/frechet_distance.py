"""Frechet distance: Wasserstein-2, squared, between the Gaussians of equal means and covariances."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mfdiag.quality.metrics._base import Metric

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from mfdiag.gradients.moments import Estimate
    from mfdiag.quality.reference import Reference

__all__ = ["METRIC"]


class _Law(NamedTuple):
    """Mean [d] and covariance [d, d], float64."""

    mean: Tensor
    covariance: Tensor


def _law(points: Tensor) -> _Law:
    flat = points.flatten(0, -2).double()
    return _Law(flat.mean(0), flat.T.cov().reshape(flat.shape[1], -1))


def _root(matrix: Tensor, power: float = 0.5) -> Tensor:
    """Power of a positive semidefinite matrix; of a singular one, that of its nonzero part."""
    import torch

    values, vectors = torch.linalg.eigh(matrix)
    kept = values > values.max() * len(values) * torch.finfo(values.dtype).eps
    return (vectors * values.where(kept, 1).pow(power).where(kept, 0)) @ vectors.T


def _influence(points: Tensor, own: _Law, other: _Law) -> Tensor:
    """Mean influence [B] of each block of points [B, m, d] of the law `own` on the distance to `other`."""
    # With T = S (S C S)^(-1/2) S, S = C_r^(1/2), the linear map that takes N(0, C) to N(0, C_r):
    # d FD = 2 <m - m_r, dm> + tr((I - T) dC), and one sample x has dm = x - m, dC = (x-m)(x-m)^T - C
    s = _root(other.covariance)
    map_ = s @ _root(s @ own.covariance @ s, -0.5) @ s
    away = points.double() - own.mean
    linear = 2 * away @ (own.mean - other.mean)
    quadratic = (away * (away - away @ map_)).sum(-1)
    return (linear + quadratic).mean(1)


def prepare(reference: Reference) -> Callable[[Tensor], Estimate]:
    from mfdiag.quality.intervals import of_influence

    data = _law(reference.points)
    root = _root(data.covariance)

    def distance(samples: Tensor) -> Estimate:
        model = _law(samples)
        # arXiv 1706.08500, equation 6: |m - m_r|^2 + tr(C + C_r - 2 (C C_r)^(1/2))
        cross = _root(root @ model.covariance @ root).trace()
        value = (model.mean - data.mean).square().sum() + (model.covariance + data.covariance).trace() - 2 * cross
        blocks = [_influence(samples, model, data)]
        if not reference.whole:
            blocks.append(_influence(reference.points, data, model))
        return of_influence(float(value), blocks, samples.shape[0] * samples.shape[1])

    return distance


METRIC = Metric(
    name="frechet_distance",
    title="Fréchet distance of means and covariances (of --features, where given)",
    paper="Heusel et al. 2017, arXiv 1706.08500",
    formula="|m - m_r|^2 + tr(C + C_r - 2 (C C_r)^(1/2))",
    best=0.0,
    pooled=prepare,
)
