"""Samplers of the time pair (r, t), 0 <= r <= t <= 1: where along the path a sample is measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit, logit, ndtr, ndtri

from mfdiag.errors import did_you_mean
from mfdiag.flow.curricula import AlphaFlowTimes, MeanAudioTimes
from mfdiag.flow.density import DensityTimes, read_density
from mfdiag.flow.specs import parse_arguments
from mfdiag.flow.time_sampler import Pair, Sampler, TimeSampler, logit_normal_pair, time_cells
from mfdiag.flow.u_shaped import UShapedTimes

__all__ = [
    "TIMES",
    "CappedTimes",
    "GridTimes",
    "LogitNormalTimes",
    "PointTimes",
    "RestrictedTimes",
    "SortedTimes",
    "TerminalVelocityTimes",
    "TimeSampler",
    "UniformTimes",
    "parse_times",
    "time_cells",
]

TIMES: dict[str, str] = {
    "logit_normal": "sorted pair of sigmoid(N(mu, sigma^2)), a share r_ne_t kept apart, the rest at r = t: "
    "logit_normal:[mu=-0.4],[sigma=1],[r_ne_t=0.25]",
    "logit_normal_capped": "t = sigmoid(N(mu, sigma^2)), r = min(t, sigmoid(N(r_mu, r_sigma^2))), the share "
    "1 - r_ne_t at r = t: logit_normal_capped:[mu=-0.6],[sigma=1.6],[r_mu=-4],[r_sigma=1.6],[r_ne_t=0.75]",
    "logit_normal_sorted": "larger and smaller of sigmoid(N(mu, sigma^2)) and sigmoid(N(r_mu, r_sigma^2)), a share "
    "r_ne_t kept apart, the rest at r = t: logit_normal_sorted:[mu=0.4],[sigma=1],[r_mu=-1.2],[r_sigma=1],[r_ne_t=1]",
    "uniform": "sorted pair of two uniforms, a share r_eq_t of it moved to r = t; shift s moves a time t to "
    "s t / (1 + (s - 1) t): uniform:[r_eq_t=0],[shift=1]",
    "restricted": "t uniform, r uniform in [max(0, t - delta), t]; delta = 0 is flow matching: restricted:delta",
    "terminal_velocity": "t - r = sigmoid(N(gap_mu, gap_sigma^2)), then r from sigmoid(N(mu, sigma^2)) below "
    "1 - (t - r), as Terminal Velocity Matching draws them: "
    "terminal_velocity:[gap_mu=-0.8],[gap_sigma=1],[mu=-0.4],[sigma=1]",
    "alpha_flow": "the interval on which alpha-Flow's target asks the model at a share progress of its annealing, "
    "from r = t at 0 to MeanFlow's pair at 1: "
    "alpha_flow:progress,[r_ne_t=0.5],[gamma=25],[clamp=0.005],[mu=-0.4],[sigma=1]",
    "mean_audio": "MeanAudio's curriculum at a share progress of training: r = t until switch, then for a share "
    "r_eq_t: mean_audio:progress,[switch=0.5],[r_eq_t=0.75],[mu=-0.4],[sigma=1]",
    "u_shaped": "t with density proportional to e^(4t) + e^(4(1-t)), cut at 80/81, t - r = sigmoid(N(mu, sigma^2)), r "
    "0 where t > 0.8 and r < 0.4, a share r_ne_t kept apart (Re-MeanFlow): u_shaped:[mu=-0.8],[sigma=1],[r_ne_t=0.25]",
    "grid": "equally many samples in each cell of an r_bins x t_bins partition where r <= t: grid:r_bins,t_bins",
    "point": "one fixed pair: point:r,t",
    "density": "another sampler's pairs in other shares by cell of (r, t), with importance weights that leave the "
    "objective as it is; `mfdiag times` writes the file: density:FILE",
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
class CappedTimes(Sampler):
    """MeanFlow's law on CIFAR-10 as released for torch (Gsunshine/py-meanflow, version 1): a law for t, one for r.

    t = sigmoid(N(mu, sigma^2)), r = min(t, sigmoid(N(r_mu, r_sigma^2))), and r = t with probability 1 - r_ne_t:
    unlike sorting the pair, this leaves t its law.
    """

    kind: ClassVar[str] = "logit_normal_capped"
    width: ClassVar[int] = 3
    mu: float = -0.6
    sigma: float = 1.6
    r_mu: float = -4.0
    r_sigma: float = 1.6
    r_ne_t: float = 0.75

    def __post_init__(self) -> None:
        self._require(self.sigma > 0, f"sigma must be above 0, got {self.sigma}")
        self._require(self.r_sigma > 0, f"r_sigma must be above 0, got {self.r_sigma}")
        self._require(0 <= self.r_ne_t <= 1, f"r_ne_t must be in [0, 1], got {self.r_ne_t}")

    def sample(self, u: np.ndarray, index: np.ndarray) -> Pair:
        """See `TimeSampler.sample`."""
        normal = ndtri(u[:, :2])
        t, r = expit(self.mu + self.sigma * normal[:, 0]), expit(self.r_mu + self.r_sigma * normal[:, 1])
        return np.where(u[:, 2] < self.r_ne_t, np.minimum(r, t), t), t


@dataclass(frozen=True)
class SortedTimes(Sampler):
    """Decoupled MeanFlow's law and that of FastGen: a draw from each of two logit-normal laws, in order.

    With probability `r_ne_t` the pair stays apart; otherwise r is set equal to t, the larger of the two.
    """

    kind: ClassVar[str] = "logit_normal_sorted"
    width: ClassVar[int] = 3
    mu: float = 0.4
    sigma: float = 1.0
    r_mu: float = -1.2
    r_sigma: float = 1.0
    r_ne_t: float = 1.0

    def __post_init__(self) -> None:
        self._require(self.sigma > 0, f"sigma must be above 0, got {self.sigma}")
        self._require(self.r_sigma > 0, f"r_sigma must be above 0, got {self.r_sigma}")
        self._require(0 <= self.r_ne_t <= 1, f"r_ne_t must be in [0, 1], got {self.r_ne_t}")

    def sample(self, u: np.ndarray, index: np.ndarray) -> Pair:
        """See `TimeSampler.sample`."""
        z = ndtri(u[:, :2]) * [self.sigma, self.r_sigma] + [self.mu, self.r_mu]
        r, t = np.sort(expit(z), axis=1).T
        return np.where(u[:, 2] < self.r_ne_t, r, t), t


@dataclass(frozen=True)
class UniformTimes(Sampler):
    """The sorted pair of two uniforms: uniform on the triangle r <= t; with probability `r_eq_t` r moves up to t.

    `shift` moves both towards noise, as data of many coordinates ask for (arXiv 2403.03206, equation 23).
    """

    kind: ClassVar[str] = "uniform"
    width: ClassVar[int] = 3  # the same without a share, so that pairs are common to all shares
    r_eq_t: float = 0.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        self._require(0 <= self.r_eq_t <= 1, f"r_eq_t must be in [0, 1], got {self.r_eq_t}")
        self._require(self.shift > 0, f"shift must be above 0, got {self.shift}")

    def sample(self, u: np.ndarray, index: np.ndarray) -> Pair:
        """See `TimeSampler.sample`."""
        one = u[:, :2] / (u[:, :2] + (1 - u[:, :2]) / self.shift)  # never above 1; u itself where shift is 1
        pair = np.sort(one, axis=1)
        return np.where(u[:, 2] < self.r_eq_t, pair[:, 1], pair[:, 0]), pair[:, 1]


@dataclass(frozen=True)
class RestrictedTimes(Sampler):
    """Restricted MeanFlow (DisCa): t uniform on [0, 1], r uniform in [max(0, t - delta), t], so t - r <= delta.

    With `delta` = 0 this is flow matching with uniform times.
    """

    kind: ClassVar[str] = "restricted"
    width: ClassVar[int] = 2
    delta: float

    def __post_init__(self) -> None:
        self._require(0 <= self.delta <= 1, f"delta must be in [0, 1], got {self.delta}")

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


def parse_times(spec: str) -> TimeSampler:
    """The time sampler `spec` names: a key of `TIMES`, with arguments by position or keyword (`uniform:r_eq_t=0.75`).

    Raises InputError for an unknown name, a wrong number of arguments, one outside its range, or a
    file that holds no density.
    """
    name = spec.partition(":")[0]
    if name == DensityTimes.kind:
        return read_density(spec, parse_times)
    if name not in _SAMPLERS:
        raise did_you_mean("time sampler", name, TIMES)
    sampler = _SAMPLERS[name]
    return sampler(**parse_arguments(spec, sampler.defaults(), integers={"r_bins", "t_bins"}))


_SAMPLERS: dict[str, Any] = {
    sampler.kind: sampler
    for sampler in (
        LogitNormalTimes,
        CappedTimes,
        SortedTimes,
        UniformTimes,
        RestrictedTimes,
        TerminalVelocityTimes,
        AlphaFlowTimes,
        MeanAudioTimes,
        UShapedTimes,
        GridTimes,
        PointTimes,
    )
}
