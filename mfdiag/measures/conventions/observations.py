"""Samples on which readings of a network are compared: the same noisy observations of the data for all of them.

A reading may scale the data, and E|u - v_c|^2 is not comparable across scales, since E tr Sigma depends on the scale
(docs/theory.md#conventions). So every reading denoises the same observation y = z + rho x_1 of the declared data z: a
reading with data k z + b takes the time at which sigma / alpha = k rho, where x_t = alpha (k y + b).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfdiag.flow.conditions import Condition, null_of
from mfdiag.flow.data.datasets import FiniteData, MomentsData
from mfdiag.flow.draw import Batch, Draws
from mfdiag.flow.paths import LINEAR, Path

__all__ = ["Intervals", "Observations", "VelocityPoints", "longest_intervals", "observe", "time_of"]

_EDGE = 0.02  # tau is uniform in [0.02, 0.98]: at the ends the path has no noise, or no data
_INNER = 0.2  # s divides [r, t] at a fraction in [0.2, 0.8]
_MIDDLE = 2.0**-60  # of the last step of bisection
_DRAWN = 8  # times to draw for each interval, of which few may have r < t
_EXPONENTIAL = 12  # cost of one logit of the posterior, in coordinates
_MOMENTS = 8  # the same for data that are themselves random


class VelocityPoints(NamedTuple):
    """Points at which a reading gives the velocity.

    Attributes:
        x: Points x_t [n, *shape].
        t: Times [n].
        v: The velocity v(x_t, t), or v_c where the posterior is not computed [n, *shape].
        weight: Factor of |u - v|^2 in the misfit [n].
    """

    x: Tensor
    t: Tensor
    v: Tensor
    weight: Tensor


class Intervals(NamedTuple):
    """Intervals r < s < t, and the points at t.

    Attributes:
        x: Points x_t [m, *shape].
        r: Start times [m].
        s: Inner times [m].
        t: End times [m].
        length2: Mean of |(t - r) v_c|^2, to which defects are relative.
    """

    x: Tensor
    r: Tensor
    s: Tensor
    t: Tensor
    length2: float


@dataclass(frozen=True)
class Observations:
    """Noisy observations y = z + rho x_1 of the declared data.

    Attributes:
        z: Data as declared [n, *shape], float64.
        x1: Noise [n, *shape].
        condition: What the network receives besides points and times.
        rho: Noise level sigma / alpha of each observation [n].
        mean: E[z | y], or z where the posterior is not computed [n, *shape].
        exact: Whether `mean` is the posterior's.
        std: Root mean square of the data about their mean.
        path: The path from data to noise.
        pairs: Times (r, s, t), each [n], where r < t for all; None where the objective has no interval.
    """

    z: Tensor
    x1: Tensor
    condition: Condition
    rho: Tensor
    mean: Tensor
    exact: bool
    std: float
    path: Path
    pairs: tuple[Tensor, Tensor, Tensor] | None

    def __len__(self) -> int:
        return len(self.z)

    def points(self, factor: float, shift: float, rows: slice = slice(None)) -> VelocityPoints:
        """The observations as points of the path from factor z + shift to noise.

        Args:
            factor: Factor on the declared data.
            shift: Added to them after that.
            rows: Which observations.

        Returns:
            The points.
        """
        rho = self.rho[rows]
        t = time_of(self.path, factor * rho)
        alpha, sigma, (d_alpha, d_sigma) = self.path.alpha(t), self.path.sigma(t), self.path.rates(t)
        column = (-1, *[1] * (self.z.ndim - 1))
        a, s, da, ds = (value.view(column) for value in (alpha, sigma, d_alpha, d_sigma))
        x = a * (factor * self.z[rows] + shift) + s * self.x1[rows]
        # x_t = alpha x_0 + sigma x_1 and v = alpha' x_0 + sigma' x_1 have the means of x_0 and x_1 given x_t:
        data = factor * self.mean[rows] + shift
        v = da * data + ds * (x - a * data) / s
        # x_0 = (sigma' x_t - sigma u) / D with D = alpha sigma' - alpha' sigma, so an error of u is one of z by
        # sigma / (D factor); relative to the linear denoiser's error std^2 rho^2 / (std^2 + rho^2):
        error = sigma / ((alpha * d_sigma - d_alpha * sigma) * factor)
        linear = self.std**2 * rho**2 / (self.std**2 + rho**2)
        return VelocityPoints(x, t, v, error**2 / (linear * self.z[0].numel()))

    def intervals(self, factor: float, shift: float, rows: slice = slice(None)) -> Intervals:
        """The intervals with their points on the path from factor z + shift to noise.

        Args:
            factor: Factor on the declared data.
            shift: Added to them after that.
            rows: Which intervals.

        Returns:
            The intervals.
        """
        assert self.pairs is not None
        x0 = factor * self.z + shift
        r, s, t = self.pairs
        v_c = self.path.velocity(x0, self.x1, t).flatten(1).square().sum(1)
        x = self.path.point(x0[rows], self.x1[rows], t[rows])
        return Intervals(x, r[rows], s[rows], t[rows], float(((t - r) ** 2 * v_c).mean()))

    @property
    def paired(self) -> Observations:
        """The same without the posterior: the velocity is v_c, and the denoised data are the data themselves.

        The posterior over few data in many dimensions memorizes them, and no network that generalizes comes near it.
        """
        return replace(self, mean=self.z, exact=False)

    def linear_error(self) -> Tensor:
        """Squared error of the best linear denoiser of isotropic data, in units of its mean [n]."""
        variance = self.std**2
        column = (-1, *[1] * (self.z.ndim - 1))
        factor = (variance / (variance + self.rho**2)).view(column)
        mean = self.z.mean(0)
        denoised = mean + factor * (self.z + self.rho.view(column) * self.x1 - mean)
        scale = variance * self.rho**2 / (variance + self.rho**2) * self.z[0].numel()
        return (denoised - self.z).flatten(1).square().sum(1) / scale


def longest_intervals(draws: Draws, count: int, among: int) -> np.ndarray:
    """Numbers of the samples with the longest intervals; their times are drawn, but not their data.

    Args:
        draws: The distribution of the samples.
        count: How many at most.
        among: Samples with r < t of which these are the longest, if so many are among the first `_DRAWN` times as many.

    Returns:
        Sample numbers, the longest interval first; none where every pair has r = t.
    """
    r, t = draws.times_of(np.arange(_DRAWN * among))
    apart = np.nonzero(r < t)[0][:among]
    return apart[np.argsort(r[apart] - t[apart], kind="stable")[:count]]


def observe(draws: Draws, samples: int | np.ndarray, *, cost: float) -> Observations:
    """Draw observations.

    Args:
        draws: The distribution of the samples. Under guidance that drops conditions, all are the null condition, whose
            velocity is not guided.
        samples: How many, or their numbers.
        cost: Upper limit of samples x data points x coordinates; above it the posterior is not computed.

    Returns:
        The observations.
    """
    batch = draws.batch(np.arange(samples) if isinstance(samples, int) else samples)
    condition, dropped = batch.condition, None
    if draws.guidance is not None and condition is not None and draws.guidance.drop > 0:
        condition = null_of(condition, draws.null_label)
        dropped = torch.ones(len(batch.t), dtype=torch.bool)
    u = torch.as_tensor(draws.uniforms("conventions", batch.index, 2))
    std = float((batch.x0 - batch.x0.mean(0)).square().mean().sqrt().clamp_min(1e-12))
    tau = _EDGE + (1 - 2 * _EDGE) * u[:, 0]
    rho = std * tau / (1 - tau)  # the time of the linear path is tau for data of standard deviation 1
    t = time_of(draws.path, rho)
    at_tau = replace(batch, r=t, t=t, dropped=dropped, scale=None)
    mean = _posterior_mean(draws, at_tau, cost)
    return Observations(
        batch.x0,
        batch.x1,
        condition,
        rho,
        batch.x0 if mean is None else mean,
        mean is not None,
        std,
        draws.path,
        _pairs(batch, u[:, 1]),
    )


def time_of(path: Path, ratio: Tensor) -> Tensor:
    """Times [n] at which sigma / alpha, which rises on (0, 1), has the values `ratio` [n]."""
    if path is LINEAR:
        return ratio / (1 + ratio)
    low, step = torch.zeros_like(ratio), 0.5
    while step > _MIDDLE:
        middle = low + step
        low = torch.where(path.sigma(middle) < ratio * path.alpha(middle), middle, low)
        step /= 2
    return low


def _posterior_mean(draws: Draws, batch: Batch, cost: float) -> Tensor | None:
    """E[x_0 | x_t] [n, *shape]; None where it is unknown or costs too much."""
    data = draws.data
    size = 1
    if isinstance(data, FiniteData):
        size = len(data.points)
    elif isinstance(data, MomentsData):
        size = len(data.moments) * _MOMENTS
    if len(batch.t) * size * (math.prod(data.shape) + _EXPONENTIAL) > cost:
        return None
    posterior = draws.velocity_posterior(batch)
    if posterior is None:
        return None
    alpha, sigma, (d_alpha, d_sigma) = (
        draws.path.alpha(batch.t),
        draws.path.sigma(batch.t),
        draws.path.rates(batch.t),
    )
    column = (-1, *[1] * (batch.x0.ndim - 1))
    determinant = (alpha * d_sigma - d_alpha * sigma).view(column)
    return (d_sigma.view(column) * batch.x_t - sigma.view(column) * posterior.mean) / determinant


def _pairs(batch: Batch, u: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """(r, s, t) of the samples with r < t, repeated to fill all of them; None where every pair has r = t."""
    apart = torch.nonzero(batch.r < batch.t)[:, 0]
    if not len(apart):
        return None
    rows = apart[torch.arange(len(batch.t)) % len(apart)]
    r, t = batch.r[rows], batch.t[rows]
    return r, r + (_INNER + (1 - 2 * _INNER) * u) * (t - r), t
