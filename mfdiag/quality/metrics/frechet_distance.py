"""Fréchet distance: squared Wasserstein-2 distance between the Gaussians with the same means and covariances."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mfdiag.quality.metrics._base import Metric, halves

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from mfdiag.gradients.intervals import Estimate
    from mfdiag.quality.metrics._base import Reference

__all__ = ["METRIC"]


class _Gaussian(NamedTuple):
    """Mean [d] and covariance [d, d], float64."""

    mean: Tensor
    covariance: Tensor


def _gaussian(points: Tensor) -> _Gaussian:
    flat = points.flatten(0, -2).double()
    return _Gaussian(flat.mean(0), flat.T.cov().reshape(flat.shape[1], -1))


def _power(matrix: Tensor, power: float = 0.5) -> Tensor:
    """Power of a positive semidefinite matrix, on its range if it is singular."""
    import torch

    values, vectors = torch.linalg.eigh(matrix)
    nonzero = values > values.max() * len(values) * torch.finfo(values.dtype).eps
    return (vectors * values.where(nonzero, 1).pow(power).where(nonzero, 0)) @ vectors.T


def _influence(points: Tensor, own: _Gaussian, other: _Gaussian) -> Tensor:
    """Mean influence [B] of each block of points [B, m, d], whose distribution is `own`, on the distance to `other`."""
    # docs/theory.md#quality-pooled, with T = S (S C S)^(-1/2) S, S = C_r^(1/2), which maps N(0, C) to N(0, C_r):
    # d FD = 2 <m - m_r, dm> + tr((I - T) dC), and one sample x has dm = x - m, dC = (x-m)(x-m)^T - C
    root = _power(other.covariance)
    transport = root @ _power(root @ own.covariance @ root, -0.5) @ root
    deviation = points.double() - own.mean
    linear = 2 * deviation @ (own.mean - other.mean)
    quadratic = (deviation * (deviation - deviation @ transport)).sum(-1)
    return (linear + quadratic).mean(1)


def _distance(model: _Gaussian, data: _Gaussian, root: Tensor) -> float:
    """The distance between two Gaussians; `root` is the square root of the data's covariance."""
    # arXiv 1706.08500, equation 6: |m - m_r|^2 + tr(C + C_r - 2 (C C_r)^(1/2))
    cross = _power(root @ model.covariance @ root).trace()
    return float((model.mean - data.mean).square().sum() + (model.covariance + data.covariance).trace() - 2 * cross)


def prepare(reference: Reference) -> Callable[[Tensor], Estimate]:
    from mfdiag.quality.intervals import estimate_from_influence

    data = _gaussian(reference.points)
    root = _power(data.covariance)
    half_data = [(data, root)] * 2
    if not reference.whole:
        half_data = [(part, _power(part.covariance)) for part in map(_gaussian, halves(reference.points))]

    def distance(samples: Tensor) -> Estimate:
        model = _gaussian(samples)
        value = _distance(model, data, root)
        parts = zip(map(_gaussian, halves(samples)), half_data, strict=True)
        halved = sum(_distance(half, *against) for half, against in parts) / 2
        blocks = [_influence(samples, model, data)]
        if not reference.whole:
            blocks.append(_influence(reference.points, data, model))
        # where laws are equal, |m - m_r|^2 has the mean tr C / n, its bias, and the variance 2 tr C^2 / n^2
        spread = float(model.covariance.trace())
        noise = float(2 * model.covariance.square().sum()) ** 0.5 / spread if spread > 0 else 0.0
        count = samples.shape[0] * samples.shape[1]
        return estimate_from_influence(value, halved, blocks, count, squared=noise)

    return distance


METRIC = Metric(
    name="frechet_distance",
    title="Fréchet distance between means and covariances (of --features, if given)",
    paper="Heusel et al. 2017, arXiv 1706.08500",
    formula="|m - m_r|^2 + tr(C + C_r - 2 (C C_r)^(1/2))",
    best=0.0,
    pooled=prepare,
)
