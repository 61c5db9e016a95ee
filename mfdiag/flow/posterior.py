"""Exact posterior of the conditional velocity v_c = x_1 - x_0 given x_t (theory, section 4), in float64.

Closed form for Gaussian and mixture data; for a finite data set the softmax over its points, streamed in tiles with
log-sum-exp, so that memory does not grow with the data. The source x_1 is N(0, I), the path is linear.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mfdiag.flow.data.disk_arrays import Points

__all__ = ["TINY_TIME", "FinitePosterior", "MixturePosterior", "Posterior", "PosteriorVelocity", "by_label"]

TINY_TIME = 1e-9  # below it float64 cannot tell x_t from its data point


class PosteriorVelocity(NamedTuple):
    """What is known of v_c given x_t: each of shape [n, *shape], but the density."""

    mean: Tensor  # the marginal velocity v(x_t, t)
    variance: Tensor  # diagonal of Sigma; its sum over coordinates is tr Sigma
    draw: Tensor  # one fresh draw of v_c, independent of the sample's own
    log_density: Tensor  # [n], log p(x_t | t) up to a constant in x_t and t


class Posterior(Protocol):
    """`uniforms` [n, width] feed the draw; `labels` [n] restrict to the label where the data have them."""

    width: int

    def __call__(self, x_t: Tensor, t: Tensor, uniforms: Tensor, labels: Tensor | None = None) -> PosteriorVelocity: ...


class MixturePosterior:
    """Closed form for a Gaussian mixture; `eigenvectors` None stands for isotropic components (the Gaussian).

    In the eigenbasis of component k with eigenvalues l: s2 = (1-t)^2 l + t^2, y = x_t - (1-t) m_k,
    E[v_c] = (t - (1-t) l) / s2 * y - m_k and Var[v_c] = l / s2.
    """

    def __init__(self, weights: Tensor, means: Tensor, eigenvalues: Tensor, eigenvectors: Tensor | None) -> None:
        self.log_weights = weights.double().log()
        self.means, self.eigenvalues, self.eigenvectors = means.double(), eigenvalues.double(), eigenvectors
        self.width = 1 + means.shape[1]

    @classmethod
    def of_covariances(cls, weights: Tensor, means: Tensor, covariances: Tensor) -> MixturePosterior:
        """From weights [k], means [k, d] and covariances [k, d, d]."""
        values, vectors = torch.linalg.eigh(covariances.double())
        return cls(weights, means, values.clamp_min(0), vectors)

    @classmethod
    def gaussian(cls, mean: float, std: float, dim: int) -> MixturePosterior:
        """N(mean, std^2 I) in `dim` dimensions."""
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
        chosen = torch.searchsorted(weight.cumsum(1), uniforms[:, :1].contiguous()).clamp_max(weight.shape[1] - 1)
        noise = torch.special.ndtri(uniforms[:, None, 1:]) * spread.sqrt()
        draws = means + self._rotate(noise, inverse=True)
        draw = draws.gather(1, chosen[:, :, None].expand(-1, -1, draws.shape[2]))[:, 0]
        return PosteriorVelocity(mean.view(shape), within.view(shape), draw.view(shape), logits.logsumexp(1))


def by_label(data: Tensor | None, samples: Tensor | None, size: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """Which of the `size` points of the data (labels `data`) go with which of the `count` samples: all, or by label."""
    if data is None or samples is None:
        return [(torch.arange(size), torch.arange(count))]
    return [(torch.nonzero(data == c)[:, 0], torch.nonzero(samples == c)[:, 0]) for c in samples.unique()]


class FinitePosterior:
    """The exact posterior over the points of a finite data set: softmax_j of -|x_t - (1-t) x_0^j|^2 / (2 t^2).

    The squared distance is expanded so that a tile's logits are one matrix product; float64 keeps the cancellation
    below 1e-7 down to t = 1e-4. The draw inverts the cumulative distribution in the order of the data: tile masses
    find the tile, one more look at that tile finds the point.
    """

    width = 1

    def __init__(
        self, points: Tensor | Points, labels: Tensor | None = None, *, tile: int = 2048, queries: int = 512
    ) -> None:
        self.points, self.labels, self.tile, self.queries = points, labels, tile, queries
        # far from the origin the expanded square loses digits: everything is shifted to the mean of a few points
        self.centre = torch.as_tensor(points[:: max(1, len(points) // 1024)]).double().flatten(1).mean(0)

    def __call__(self, x_t: Tensor, t: Tensor, uniforms: Tensor, labels: Tensor | None = None) -> PosteriorVelocity:
        time = t.double().clamp_min(TINY_TIME)
        x = x_t.double().flatten(1) - (1 - time)[:, None] * self.centre  # x_t of the shifted data
        mean, second, draw = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        log_sum = torch.empty_like(time)
        for members, rows in by_label(self.labels, labels, len(self.points), len(x)):
            for part in rows.split(self.queries):
                found = self._stream(members, x[part], time[part], uniforms[part, 0].double())
                mean[part], second[part], draw[part], log_sum[part] = found
        scale = time[:, None]
        variance = (second - mean**2).clamp_min(0) / scale**2
        return PosteriorVelocity(
            ((x - mean) / scale - self.centre).view(x_t.shape),
            variance.view(x_t.shape),
            ((x - draw) / scale - self.centre).view(x_t.shape),
            log_sum - 0.5 * x.square().sum(1) / time**2 - x.shape[1] * time.log(),
        )

    def _points(self, rows: Tensor) -> Tensor:
        """The points `rows`, flat and shifted [len(rows), d]."""
        found = self.points[rows if isinstance(self.points, Tensor) else rows.numpy()]
        return torch.as_tensor(found).double().flatten(1) - self.centre

    def _stream(self, members: Tensor, x: Tensor, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Posterior mean, mean square and one draw of x_0 over the points `members`, each [n, d]; log evidence [n]."""
        n, d = x.shape
        shrink = ((1 - t) / t**2)[:, None]
        query = torch.cat([shrink * x, -0.5 * (1 - t)[:, None] * shrink], 1)  # logits = query @ [p, |p|^2]
        top = torch.full((n, 1), -torch.inf, dtype=torch.float64)
        total = torch.zeros(n, 2 * d + 1, dtype=torch.float64)
        tiles = members.split(self.tile)
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
