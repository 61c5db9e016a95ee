"""Samplers of the time pair (r, t), 0 <= r <= t <= 1: where along the path a sample is measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit, logit, ndtr, ndtri

from mfdiag.errors import did_you_mean
from mfdiag.flow.curricula import AlphaFlowTimes, MeanAudioTimes
from mfdiag.flow.sampler import Pair, Sampler, TimeSampler, logit_normal_pair
from mfdiag.flow.specs import parse_arguments

__all__ = [
    "TIMES",
    "GridTimes",
    "LogitNormalTimes",
    "PointTimes",
    "RestrictedTimes",
    "TerminalVelocityTimes",
    "TimeSampler",
    "UniformTimes",
    "parse_times",
    "time_cells",
]

TIMES: dict[str, str] = {
    "logit_normal": "sorted pair of sigmoid(N(mu, sigma^2)), a share r_ne_t kept apart, the rest at r = t: "
    "logit_normal:[mu=-0.4],[sigma=1],[r_ne_t=0.25]",
    "uniform": "sorted pair of two uniforms, a share r_eq_t of it moved to r = t: uniform:[r_eq_t=0]",
    "restricted": "t uniform, r uniform in [max(0, t - delta), t]: restricted:delta",
    "terminal_velocity": "t - r = sigmoid(N(gap_mu, gap_sigma^2)), then r from sigmoid(N(mu, sigma^2)) below "
    "1 - (t - r), as Terminal Velocity Matching draws them: "
    "terminal_velocity:[gap_mu=-0.8],[gap_sigma=1],[mu=-0.4],[sigma=1]",
    "alpha_flow": "the interval on which alpha-Flow's target asks the model at a share progress of its annealing, "
    "from r = t at 0 to MeanFlow's pair at 1: "
    "alpha_flow:progress,[r_ne_t=0.5],[gamma=25],[clamp=0.005],[mu=-0.4],[sigma=1]",
    "mean_audio": "MeanAudio's curriculum at a share progress of training: r = t until switch, then for a share "
    "r_eq_t: mean_audio:progress,[switch=0.5],[r_eq_t=0.75],[mu=-0.4],[sigma=1]",
    "grid": "equally many samples in each cell of an r_bins x t_bins partition where r <= t: grid:r_bins,t_bins",
    "point": "one fixed pair: point:r,t",
}


@dataclass(frozen=True)
class LogitNormalTimes(Sampler):
    """MeanFlow's law (arXiv 2505.13447, design decisions): a sorted pair of sigmoid(N(mu, sigma^2)), often at r = t.

    With probability `r_ne_t` the pair stays apart; otherwise r is set equal to t, the larger of the two.
    """

    kind: ClassVar[str] = "logit_normal"
    width: ClassVar[int] = 3
    mu: float = -0.4
    sigma: float = 1.0
    r_ne_t: float = 0.25

    def __post_init__(self) -> None:
        self._require(self.sigma > 0, f"sigma must be above 0, got {self.sigma}")
        self._require(0 <= self.r_ne_t <= 1, f"r_ne_t must be in [0, 1], got {self.r_ne_t}")

    def sample(self, u: np.ndarray, index: np.ndarray) -> Pair:
        """See `TimeSampler.sample`."""
        r, t = logit_normal_pair(u[:, :2], self.mu, self.sigma)
        return np.where(u[:, 2] < self.r_ne_t, r, t), t


@dataclass(frozen=True)
class UniformTimes(Sampler):
    """The sorted pair of two uniforms: uniform on the triangle r <= t; with probability `r_eq_t` r moves up to t."""

    kind: ClassVar[str] = "uniform"
    width: ClassVar[int] = 3  # the same without a share, so that pairs are common to all shares
    r_eq_t: float = 0.0

    def __post_init__(self) -> None:
        self._require(0 <= self.r_eq_t <= 1, f"r_eq_t must be in [0, 1], got {self.r_eq_t}")

    def sample(self, u: np.ndarray, index: np.ndarray) -> Pair:
        """See `TimeSampler.sample`."""
        pair = np.sort(u[:, :2], axis=1)
        return np.where(u[:, 2] < self.r_eq_t, pair[:, 1], pair[:, 0]), pair[:, 1]


@dataclass(frozen=True)
class RestrictedTimes(Sampler):
    """Restricted MeanFlow (DisCa): t uniform on [0, 1], r uniform in [max(0, t - delta), t], so t - r <= delta."""

    kind: ClassVar[str] = "restricted"
    width: ClassVar[int] = 2
    delta: float

    def __post_init__(self) -> None:
        self._require(0 < self.delta <= 1, f"delta must be in (0, 1], got {self.delta}")

    def sample(self, u: np.ndarray, index: np.ndarray) -> Pair:
        """See `TimeSampler.sample`."""
        t = u[:, 0].copy()
        return t - np.minimum(t, self.delta) * u[:, 1], t


@dataclass(frozen=True)
class TerminalVelocityTimes(Sampler):
    """Terminal Velocity Matching's gap sampling (arXiv 2511.19797 and its code): the gap first, then where it lies.

    t - r = sigmoid(N(gap_mu, gap_sigma^2)); r is sigmoid(N(mu, sigma^2)) given that t = r + gap stays below 1.
    """

    kind: ClassVar[str] = "terminal_velocity"
    width: ClassVar[int] = 2
    gap_mu: float = -0.8
    gap_sigma: float = 1.0
    mu: float = -0.4
    sigma: float = 1.0

    def __post_init__(self) -> None:
        self._require(self.gap_sigma > 0, f"gap_sigma must be above 0, got {self.gap_sigma}")
        self._require(self.sigma > 0, f"sigma must be above 0, got {self.sigma}")

    def sample(self, u: np.ndarray, index: np.ndarray) -> Pair:
        """See `TimeSampler.sample`."""
        gap = expit(self.gap_mu + self.gap_sigma * ndtri(u[:, 0]))
        # quantile of the law cut at 1 - gap: F^-1(u F(1 - gap)), where logit(1 - gap) = -logit(gap)
        below = ndtr((-logit(gap) - self.mu) / self.sigma)
        r = np.minimum(expit(self.mu + self.sigma * ndtri(u[:, 1] * below)), 1 - gap)
        return r, np.minimum(r + gap, 1.0)


@dataclass(frozen=True)
class GridTimes(Sampler):
    """Stratified over `time_cells(r_bins, t_bins)`: sample i is uniform on the part of cell i mod C where r <= t.

    Every cell weighs the same, whatever its area: an average over samples is an average over cells.
    """

    kind: ClassVar[str] = "grid"
    width: ClassVar[int] = 2
    stratified: ClassVar[bool] = True
    r_bins: int
    t_bins: int

    def __post_init__(self) -> None:
        cells = self.r_bins * self.t_bins
        self._require(cells <= 2**20, f"at most 2^20 cells, got {cells}")

    @cached_property
    def cells(self) -> np.ndarray:
        """r_low, r_high, t_low, t_high of each cell, float64 [C, 4]."""
        return time_cells(self.r_bins, self.t_bins)

    def sample(self, u: np.ndarray, index: np.ndarray) -> Pair:
        """See `TimeSampler.sample`."""
        # On the cell [a, b] x [c, d] the density of t is proportional to the room for r, min(t, b) - a:
        # it rises from t = max(a, c) to t = m and is flat from there to d. Invert its integral.
        a, b, c, d = self.cells[np.asarray(index) % len(self.cells)].T
        start = np.maximum(a, c)
        m = np.clip(b, start, d)
        rising = ((m - a) ** 2 - (start - a) ** 2) / 2
        area = u[:, 0] * (rising + (b - a) * (d - m))
        t = np.where(area < rising, a + np.sqrt((start - a) ** 2 + 2 * area), m + (area - rising) / (b - a))
        t = np.clip(t, start, d)
        room = np.minimum(t, b)
        return np.minimum(a + (room - a) * u[:, 1], room), t


@dataclass(frozen=True)
class PointTimes(Sampler):
    """One fixed pair (r, t)."""

    kind: ClassVar[str] = "point"
    width: ClassVar[int] = 0
    r: float
    t: float

    def __post_init__(self) -> None:
        self._require(0 <= self.r <= self.t <= 1, f"expected 0 <= r <= t <= 1, got r={self.r}, t={self.t}")

    def sample(self, u: np.ndarray, index: np.ndarray) -> Pair:
        """See `TimeSampler.sample`."""
        return np.full(len(index), self.r), np.full(len(index), self.t)


def time_cells(r_bins: int, t_bins: int) -> np.ndarray:
    """Cells of the `r_bins` x `t_bins` partition of the unit square that hold some r < t, in order of r, then t.

    Returns r_low, r_high, t_low, t_high of each, float64 [C, 4]; cells on the diagonal hold pairs with r > t too.
    """
    r, t = np.divmod(np.arange(r_bins * t_bins), t_bins)
    inside = r * t_bins < (t + 1) * r_bins  # r_low < t_high, in whole numbers
    r, t = r[inside], t[inside]
    return np.stack([r / r_bins, (r + 1) / r_bins, t / t_bins, (t + 1) / t_bins], axis=1)


def parse_times(spec: str) -> TimeSampler:
    """The time sampler `spec` names: a key of `TIMES`, with arguments by position or keyword (`uniform:r_eq_t=0.75`).

    Raises InputError for an unknown name, a wrong number of arguments, or one outside its range.
    """
    name = spec.partition(":")[0]
    if name not in _SAMPLERS:
        raise did_you_mean("time sampler", name, TIMES)
    sampler = _SAMPLERS[name]
    return sampler(**parse_arguments(spec, sampler.defaults(), integers={"r_bins", "t_bins"}))


_SAMPLERS: dict[str, Any] = {
    sampler.kind: sampler
    for sampler in (
        LogitNormalTimes,
        UniformTimes,
        RestrictedTimes,
        TerminalVelocityTimes,
        AlphaFlowTimes,
        MeanAudioTimes,
        GridTimes,
        PointTimes,
    )
}
