"""Exact posterior of the conditional velocity v_c = x_1 - x_0 given x_t, in float64 (docs/theory.md#posterior).

Gaussian and mixture data have a closed form. For a finite data set, the posterior is a softmax over its points,
streamed in tiles with log-sum-exp, so that memory does not grow with the data. The source is N(0, I) and the path is
linear; `transformed_posterior` extends this to other sources and paths.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mfdiag.flow.data.disk_arrays import Points

__all__ = ["TINY_TIME", "FinitePosterior", "MixturePosterior", "Posterior", "PosteriorVelocity", "match_labels"]

TINY_TIME = 1e-9  # below it, float64 cannot distinguish x_t from its data point
_TILE = 2048  # data points whose logits are held together
_QUERIES = 512  # samples whose logits are held together
_CENTER_POINTS = 1024  # points whose mean approximates the center of the data


class PosteriorVelocity(NamedTuple):
    """Posterior of v_c given x_t.

    Attributes:
        mean: The marginal velocity v(x_t, t) [n, *shape].
        variance: Diagonal of the covariance Sigma [n, *shape]; its sum over coordinates is tr Sigma.
        draw: One fresh draw of v_c [n, *shape], independent of the v_c that x_t was made from.
        log_density: Log p(x_t | t) [n], up to a constant in x_t and t.
    """

    mean: Tensor
    variance: Tensor
    draw: Tensor
    log_density: Tensor


class Posterior(Protocol):
    """Maps points x_t [n, *shape] at times t [n] to the posterior of v_c.

    `uniforms` [n, width] are the random numbers of the draw. `labels` [n] restrict the posterior to the data of each
    label; None means all data.
    """

    width: int

    def __call__(self, x_t: Tensor, t: Tensor, uniforms: Tensor, labels: Tensor | None = None) -> PosteriorVelocity: ...


class MixturePosterior:
    """Closed form for a Gaussian mixture (docs/theory.md#mixture-posterior).

    In the eigenbasis of component k, with eigenvalues l: s2 = (1-t)^2 l + t^2, y = x_t - (1-t) m_k,
    E[v_c] = (t - (1-t) l) / s2 * y - m_k and Var[v_c] = l / s2. Components have weights [k], means [k, d], eigenvalues
    [k, d] and eigenvectors [k, d, d]; None for isotropic components.
    """

    def __init__(self, weights: Tensor, means: Tensor, eigenvalues: Tensor, eigenvectors: Tensor | None) -> None:
        self.log_weights = weights.double().log()
        self.means, self.eigenvalues, self.eigenvectors = means.double(), eigenvalues.double(), eigenvectors
        self.width = 1 + means.shape[1]

    @classmethod
    def of_covariances(cls, weights: Tensor, means: Tensor, covariances: Tensor) -> MixturePosterior:
        """Builds the posterior from covariance matrices.

        Args:
            weights: Of the components [k], sum 1.
            means: Of the components [k, d].
            covariances: Of the components [k, d, d].

        Returns:
            The posterior.
        """
        values, vectors = torch.linalg.eigh(covariances.double())
        return cls(weights, means, values.clamp_min(0), vectors)

    @classmethod
    def gaussian(cls, mean: float, std: float, dim: int) -> MixturePosterior:
        """Builds the posterior of N(mean, std^2 I).

        Args:
            mean: Mean of every coordinate.
            std: Standard deviation of every coordinate, above 0.
            dim: Number of coordinates.

        Returns:
            The posterior.
        """
        full = torch.full((1, dim), 1.0, dtype=torch.float64)
        return cls(torch.ones(1), full * mean, full * std**2, None)

    def _rotate(self, x: Tensor, inverse: bool = False) -> Tensor:
        if self.eigenvectors is None:
            return x
        return torch.einsum("kij,nkj->nki" if inverse else "kji,nkj->nki", self.eigenvectors, x)

    def __call__(self, x_t: Tensor, t: Tensor, uniforms: Tensor, labels: Tensor | None = None) -> PosteriorVelocity:
        shape, flat, time = x_t.shape, x_t.double().flatten(1), t.double()[:, None, None]
        y = self._rotate(flat[:, None] - (1 - time) * self.means)  # [n, k, d]
        s2 = (1 - time) ** 2 * self.eigenvalues + time**2
        logits = self.log_weights - 0.5 * (s2.log() + y.square() / s2).sum(-1)
        weight = torch.softmax(logits, dim=1)
        means = self._rotate((time - (1 - time) * self.eigenvalues) / s2 * y, inverse=True) - self.means
        spread = self.eigenvalues / s2
        squares = spread if self.eigenvectors is None else torch.einsum("kij,nkj->nki", self.eigenvectors**2, spread)
        mean = torch.einsum("nk,nki->ni", weight, means)
        within = torch.einsum("nk,nki->ni", weight, squares + (means - mean[:, None]) ** 2)
        uniforms = uniforms.double()
        component = torch.searchsorted(weight.cumsum(1), uniforms[:, :1].contiguous()).clamp_max(weight.shape[1] - 1)
        noise = torch.special.ndtri(uniforms[:, None, 1:]) * spread.sqrt()
        draws = means + self._rotate(noise, inverse=True)
        draw = draws.gather(1, component[:, :, None].expand(-1, -1, draws.shape[2]))[:, 0]
        return PosteriorVelocity(mean.view(shape), within.view(shape), draw.view(shape), logits.logsumexp(1))


def match_labels(
    data_labels: Tensor | None, sample_labels: Tensor | None, data_size: int, sample_size: int
) -> list[tuple[Tensor, Tensor]]:
    """Groups of data points and samples that share a label.

    Args:
        data_labels: Labels of the data points [data_size], or None.
        sample_labels: Labels of the samples [sample_size], or None.
        data_size: Number of data points.
        sample_size: Number of samples.

    Returns:
        Row numbers of the data points and of the samples of each label. One group of all if either has no labels.
    """
    if data_labels is None or sample_labels is None:
        return [(torch.arange(data_size), torch.arange(sample_size))]
    return [
        (torch.nonzero(data_labels == label)[:, 0], torch.nonzero(sample_labels == label)[:, 0])
        for label in sample_labels.unique()
    ]


class FinitePosterior:
    """Posterior over the points of a finite data set: softmax_j of -|x_t - (1-t) x_0^j|^2 / (2 t^2).

    See docs/theory.md#finite-posterior. The squared distance is expanded, so that the logits of a tile are one matrix
    product; in float64 the cancellation stays below 1e-7 down to t = 1e-4. The draw inverts the cumulative distribution
    in the order of the data: tile masses select the tile, and a second pass over that tile selects the point.
    """

    width = 1

    def __init__(
        self, points: Tensor | Points, labels: Tensor | None = None, *, tile: int = _TILE, queries: int = _QUERIES
    ) -> None:
        self.points, self.labels, self.tile, self.queries = points, labels, tile, queries
        # far from the origin the expanded square loses digits, so everything is shifted by the mean of some points
        self.center = torch.as_tensor(points[:: max(1, len(points) // _CENTER_POINTS)]).double().flatten(1).mean(0)

    def __call__(self, x_t: Tensor, t: Tensor, uniforms: Tensor, labels: Tensor | None = None) -> PosteriorVelocity:
        time = t.double().clamp_min(TINY_TIME)
        x = x_t.double().flatten(1) - (1 - time)[:, None] * self.center  # x_t of the shifted data
        mean, second, draw = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        log_sum = torch.empty_like(time)
        for candidates, rows in match_labels(self.labels, labels, len(self.points), len(x)):
            for part in rows.split(self.queries):
                moments = self._stream(candidates, x[part], time[part], uniforms[part, 0].double())
                mean[part], second[part], draw[part], log_sum[part] = moments
        scale = time[:, None]
        variance = (second - mean**2).clamp_min(0) / scale**2
        return PosteriorVelocity(
            ((x - mean) / scale - self.center).view(x_t.shape),
            variance.view(x_t.shape),
            ((x - draw) / scale - self.center).view(x_t.shape),
            log_sum - 0.5 * x.square().sum(1) / time**2 - x.shape[1] * time.log(),
        )

    def _points(self, rows: Tensor) -> Tensor:
        """The points `rows`, flat and shifted [len(rows), d]."""
        points = self.points[rows if isinstance(self.points, Tensor) else rows.numpy()]
        return torch.as_tensor(points).double().flatten(1) - self.center

    def _stream(self, candidates: Tensor, x: Tensor, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Posterior mean, mean square and one draw of x_0 over the points `candidates`, each [n, d]; log evidence."""
        n, d = x.shape
        shrink = ((1 - t) / t**2)[:, None]
        query = torch.cat([shrink * x, -0.5 * (1 - t)[:, None] * shrink], 1)  # logits = query @ [p, |p|^2]
        top = torch.full((n, 1), -torch.inf, dtype=torch.float64)
        total = torch.zeros(n, 2 * d + 1, dtype=torch.float64)
        tiles = candidates.split(self.tile)
        masses, tops = torch.empty(n, len(tiles), dtype=torch.float64), torch.empty(n, len(tiles), dtype=torch.float64)
        for j, tile in enumerate(tiles):
            p = self._points(tile)
            logits = query @ torch.cat([p, (p**2).sum(1, keepdim=True)], 1).T
            local = logits.amax(1, keepdim=True)
            weights = logits.sub_(local).exp_()
            sums = weights @ torch.cat([torch.ones(len(p), 1, dtype=torch.float64), p, p**2], 1)
            new = torch.maximum(top, local)
            total = total * (top - new).exp() + sums * (local - new).exp()
            top, masses[:, j], tops[:, j] = new, sums[:, 0], local[:, 0]
        share = (masses * (tops - top).exp() / total[:, :1]).cumsum(1)
        tile_of = torch.searchsorted(share, u[:, None].contiguous()).clamp_max(len(tiles) - 1)[:, 0]
        draw = torch.empty_like(x)
        for j in tile_of.unique().tolist():
            rows = torch.nonzero(tile_of == j)[:, 0]
            p = self._points(tiles[j])
            logits = query[rows] @ torch.cat([p, (p**2).sum(1, keepdim=True)], 1).T
            inside = (logits - top[rows]).exp().cumsum(1) / total[rows, :1]
            before = share[rows, j - 1] if j else torch.zeros(len(rows), dtype=torch.float64)
            pick = torch.searchsorted(inside, (u[rows] - before)[:, None].contiguous()).clamp_max(len(p) - 1)
            draw[rows] = p[pick[:, 0]]
        mean, second = total[:, 1 : d + 1] / total[:, :1], total[:, d + 1 :] / total[:, :1]
        return mean, second, draw, (top + total[:, :1].log())[:, 0]
