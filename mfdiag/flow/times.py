"""Samplers of the time pair (r, t), 0 <= r <= t <= 1: where on the path a sample is measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit, logit, ndtr, ndtri

from mfdiag.errors import did_you_mean
from mfdiag.flow.curricula import AlphaFlowTimes, MeanAudioTimes
from mfdiag.flow.density import DensityTimes, read_density
from mfdiag.flow.seeds import uniforms
from mfdiag.flow.specs import parse_arguments
from mfdiag.flow.time_sampler import TimePairs, TimeSampler, TimeSamplerBase, logit_normal_pairs, time_cells
from mfdiag.flow.time_shares import SHARE, current_spelling
from mfdiag.flow.u_shaped import UShapedTimes

__all__ = [
    "TIMES",
    "CappedTimes",
    "GridTimes",
    "LogitNormalTimes",
    "NoiseLevelTimes",
    "PointTimes",
    "RestrictedTimes",
    "SingleTimes",
    "SortedTimes",
    "TerminalVelocityTimes",
    "TimeSampler",
    "UniformTimes",
    "parse_times",
    "same_times_note",
    "time_cells",
]

TIMES: dict[str, str] = {
    "logit_normal": "sorted pair of two draws of sigmoid(N(mu, sigma^2)); a fraction r_ne_t keeps r != t, the rest "
    "have r = t: logit_normal:[mu=-0.4],[sigma=1],[r_ne_t=0.25]",
    "logit_normal_or_single": "as logit_normal, but a pair with r = t is one draw, not the larger of two "
    "(rectified-flow-pytorch): logit_normal_or_single:[mu=-0.4],[sigma=1],[r_ne_t=0.5]",
    "logit_normal_capped": "t = sigmoid(N(mu, sigma^2)), r = min(t, sigmoid(N(r_mu, r_sigma^2))); a fraction "
    "1 - r_ne_t has r = t: logit_normal_capped:[mu=-0.6],[sigma=1.6],[r_mu=-4],[r_sigma=1.6],[r_ne_t=0.75]",
    "logit_normal_sorted": "t and r are the larger and the smaller of sigmoid(N(mu, sigma^2)) and "
    "sigmoid(N(r_mu, r_sigma^2)); a fraction r_ne_t keeps r != t, the rest have r = t: "
    "logit_normal_sorted:[mu=0.4],[sigma=1],[r_mu=-1.2],[r_sigma=1],[r_ne_t=1]",
    "uniform": "sorted pair of two uniform draws; a fraction r_ne_t keeps r != t, the rest have r = t; a shift s maps "
    "each time t to s t / (1 + (s - 1) t): uniform:[r_ne_t=1],[shift=1]",
    "restricted": "t uniform, r uniform in [max(0, t - delta), t]; delta = 0 is flow matching: restricted:delta",
    "terminal_velocity": "Terminal Velocity Matching's times: t - r = sigmoid(N(gap_mu, gap_sigma^2)), then r from "
    "sigmoid(N(mu, sigma^2)) below 1 - (t - r): "
    "terminal_velocity:[gap_mu=-0.8],[gap_sigma=1],[mu=-0.4],[sigma=1]",
    "alpha_flow": "the interval at which alpha-Flow's target evaluates the model after a fraction progress of its "
    "annealing, from r = t at 0 to MeanFlow's pair at 1: "
    "alpha_flow:progress,[r_ne_t=0.5],[gamma=25],[clamp=0.005],[mu=-0.4],[sigma=1]",
    "mean_audio": "MeanAudio's curriculum after a fraction progress of training: r = t for all pairs before switch, "
    "after which a fraction r_ne_t keeps r != t: mean_audio:progress,[switch=0.5],[r_ne_t=0.25],[mu=-0.4],[sigma=1]",
    "u_shaped": "Re-MeanFlow's times: t has density proportional to e^(4t) + e^(4(1-t)), capped at 80/81; "
    "t - r = sigmoid(N(mu, sigma^2)), but r = 0 if t > 0.8 and r < 0.4; a fraction r_ne_t keeps r != t: "
    "u_shaped:[mu=-0.8],[sigma=1],[r_ne_t=0.25]",
    "arctan_normal": "t = (2/pi) arctan(exp(N(mu, sigma^2))) and r = 0, the times of sCM and FACM: "
    "arctan_normal:[mu=-0.8],[sigma=1.6]",
    "grid": "equally many samples in each cell of an r_bins x t_bins partition with r <= t: grid:r_bins,t_bins",
    "point": "one fixed pair: point:r,t",
    "density": "the pairs of another sampler with other probabilities of (r, t) cells, and importance weights that "
    "leave the objective unchanged; `mfdiag times` writes the file: density:FILE",
}

_PAIRS = 4096  # a sampler with r != t in one of a thousand pairs shows it among so many
_MAX_CELLS = 2**20  # of a grid; its table of bounds then has 32 MiB


@dataclass(frozen=True)
class LogitNormalTimes(TimeSamplerBase):
    """MeanFlow's times (arXiv 2505.13447, design decisions): a sorted pair of two draws of sigmoid(N(mu, sigma^2)).

    With probability `r_ne_t` the pair keeps r != t. Otherwise r is set to t, the larger of the two.
    """

    kind: ClassVar[str] = "logit_normal"
    width: ClassVar[int] = 3
    mu: float = -0.4
    sigma: float = 1.0
    r_ne_t: float = 0.25

    def __post_init__(self) -> None:
        self._require_positive("sigma")
        self._require_fraction("r_ne_t")

    def sample(self, u: np.ndarray, index: np.ndarray) -> TimePairs:
        """See `TimeSampler.sample`."""
        r, t = logit_normal_pairs(u[:, :2], self.mu, self.sigma)
        return np.where(u[:, 2] < self.r_ne_t, r, t), t


@dataclass(frozen=True)
class SingleTimes(TimeSamplerBase):
    """The times of rectified-flow-pytorch: a sorted pair of two draws of sigmoid(N(mu, sigma^2)), or one draw twice.

    With probability `r_ne_t` the pair keeps r != t. Otherwise r and t are the first draw, not the larger one. The
    repository decides this for whole batches.
    """

    kind: ClassVar[str] = "logit_normal_or_single"
    width: ClassVar[int] = 3
    mu: float = -0.4
    sigma: float = 1.0
    r_ne_t: float = 0.5

    def __post_init__(self) -> None:
        self._require_positive("sigma")
        self._require_fraction("r_ne_t")

    def sample(self, u: np.ndarray, index: np.ndarray) -> TimePairs:
        """See `TimeSampler.sample`."""
        draws = expit(self.mu + self.sigma * ndtri(u[:, :2]))
        both = u[:, 2] < self.r_ne_t
        return np.where(both, draws.min(1), draws[:, 0]), np.where(both, draws.max(1), draws[:, 0])


@dataclass(frozen=True)
class NoiseLevelTimes(TimeSamplerBase):
    """The times of sCM and FACM: t = (2 / pi) arctan(exp(N(mu, sigma^2))), with r = 0 (arXiv 2410.11081).

    On the trigonometric path exp(N(mu, sigma^2)) is the ratio of noise to data.
    """

    kind: ClassVar[str] = "arctan_normal"
    width: ClassVar[int] = 1
    mu: float = -0.8
    sigma: float = 1.6

    def __post_init__(self) -> None:
        self._require_positive("sigma")

    def sample(self, u: np.ndarray, index: np.ndarray) -> TimePairs:
        """See `TimeSampler.sample`."""
        t = np.arctan(np.exp(self.mu + self.sigma * ndtri(u[:, 0]))) * (2 / np.pi)
        return np.zeros_like(t), t


@dataclass(frozen=True)
class CappedTimes(TimeSamplerBase):
    """MeanFlow's times on CIFAR-10 in its torch release (Gsunshine/py-meanflow, version 1): r is capped at t.

    t = sigmoid(N(mu, sigma^2)) and r = min(t, sigmoid(N(r_mu, r_sigma^2))). With probability 1 - `r_ne_t`, r = t.
    Unlike sorting the pair, this does not change the distribution of t.
    """

    kind: ClassVar[str] = "logit_normal_capped"
    width: ClassVar[int] = 3
    mu: float = -0.6
    sigma: float = 1.6
    r_mu: float = -4.0
    r_sigma: float = 1.6
    r_ne_t: float = 0.75

    def __post_init__(self) -> None:
        self._require_positive("sigma", "r_sigma")
        self._require_fraction("r_ne_t")

    def sample(self, u: np.ndarray, index: np.ndarray) -> TimePairs:
        """See `TimeSampler.sample`."""
        normal = ndtri(u[:, :2])
        t, r = expit(self.mu + self.sigma * normal[:, 0]), expit(self.r_mu + self.r_sigma * normal[:, 1])
        return np.where(u[:, 2] < self.r_ne_t, np.minimum(r, t), t), t


@dataclass(frozen=True)
class SortedTimes(TimeSamplerBase):
    """The times of Decoupled MeanFlow and FastGen: one draw from each of two logit-normal distributions, sorted.

    With probability `r_ne_t` the pair keeps r != t. Otherwise r is set to t, the larger of the two.
    """

    kind: ClassVar[str] = "logit_normal_sorted"
    width: ClassVar[int] = 3
    mu: float = 0.4
    sigma: float = 1.0
    r_mu: float = -1.2
    r_sigma: float = 1.0
    r_ne_t: float = 1.0

    def __post_init__(self) -> None:
        self._require_positive("sigma", "r_sigma")
        self._require_fraction("r_ne_t")

    def sample(self, u: np.ndarray, index: np.ndarray) -> TimePairs:
        """See `TimeSampler.sample`."""
        z = ndtri(u[:, :2]) * [self.sigma, self.r_sigma] + [self.mu, self.r_mu]
        r, t = np.sort(expit(z), axis=1).T
        return np.where(u[:, 2] < self.r_ne_t, r, t), t


@dataclass(frozen=True)
class UniformTimes(TimeSamplerBase):
    """A sorted pair of two uniform draws: uniform on the triangle r <= t.

    With probability `r_ne_t` the pair keeps r != t. Otherwise r is set to t, the larger of the two.
    A `shift` above 1 moves both times toward noise, as high-dimensional data need (arXiv 2403.03206, equation 23).
    """

    kind: ClassVar[str] = "uniform"
    width: ClassVar[int] = 3  # also for r_ne_t = 1, so that all values of r_ne_t share their pairs
    spelled_from: ClassVar[str | None] = SHARE
    r_ne_t: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        self._require_fraction("r_ne_t")
        self._require_positive("shift")

    def sample(self, u: np.ndarray, index: np.ndarray) -> TimePairs:
        """See `TimeSampler.sample`."""
        shifted = u[:, :2] / (u[:, :2] + (1 - u[:, :2]) / self.shift)  # never above 1; equals u if shift is 1
        pairs = np.sort(shifted, axis=1)
        return np.where(u[:, 2] < 1 - self.r_ne_t, pairs[:, 1], pairs[:, 0]), pairs[:, 1]


@dataclass(frozen=True)
class RestrictedTimes(TimeSamplerBase):
    """Restricted MeanFlow (DisCa): t uniform on [0, 1], r uniform in [max(0, t - delta), t], so t - r <= delta.

    With `delta` = 0 this is flow matching with uniform times.
    """

    kind: ClassVar[str] = "restricted"
    width: ClassVar[int] = 2
    delta: float

    def __post_init__(self) -> None:
        self._require_fraction("delta")

    def sample(self, u: np.ndarray, index: np.ndarray) -> TimePairs:
        """See `TimeSampler.sample`."""
        t = u[:, 0].copy()
        return t - np.minimum(t, self.delta) * u[:, 1], t


@dataclass(frozen=True)
class TerminalVelocityTimes(TimeSamplerBase):
    """Terminal Velocity Matching's gap sampling (arXiv 2511.19797 and its code): first the gap, then its position.

    The gap t - r is sigmoid(N(gap_mu, gap_sigma^2)). r is sigmoid(N(mu, sigma^2)), conditional on r + gap < 1.
    """

    kind: ClassVar[str] = "terminal_velocity"
    width: ClassVar[int] = 2
    gap_mu: float = -0.8
    gap_sigma: float = 1.0
    mu: float = -0.4
    sigma: float = 1.0

    def __post_init__(self) -> None:
        self._require_positive("gap_sigma", "sigma")

    def sample(self, u: np.ndarray, index: np.ndarray) -> TimePairs:
        """See `TimeSampler.sample`."""
        gap = expit(self.gap_mu + self.gap_sigma * ndtri(u[:, 0]))
        # quantile of the distribution truncated at 1 - gap: F^-1(u F(1 - gap)), where logit(1 - gap) = -logit(gap)
        below = ndtr((-logit(gap) - self.mu) / self.sigma)
        r = np.minimum(expit(self.mu + self.sigma * ndtri(u[:, 1] * below)), 1 - gap)
        return r, np.minimum(r + gap, 1.0)


@dataclass(frozen=True)
class GridTimes(TimeSamplerBase):
    """Stratified over `time_cells(r_bins, t_bins)`: sample i is uniform on the part of cell i mod C with r <= t.

    Every cell has the same weight, whatever its area: an average over samples is an average over cells.
    """

    kind: ClassVar[str] = "grid"
    width: ClassVar[int] = 2
    stratified: ClassVar[bool] = True
    r_bins: int
    t_bins: int

    def __post_init__(self) -> None:
        cells = self.r_bins * self.t_bins
        self._require(cells <= _MAX_CELLS, f"at most 2^20 cells, got {cells}")

    @cached_property
    def cells(self) -> np.ndarray:
        """r_low, r_high, t_low, t_high of each cell, float64 [C, 4]."""
        return time_cells(self.r_bins, self.t_bins)

    def sample(self, u: np.ndarray, index: np.ndarray) -> TimePairs:
        """See `TimeSampler.sample`."""
        # On the cell [a, b] x [c, d] the density of t is proportional to the length available to r, min(t, b) - a.
        # It rises from t = max(a, c) to t = m and is flat from m to d. Invert its integral.
        a, b, c, d = self.cells[np.asarray(index) % len(self.cells)].T
        start = np.maximum(a, c)
        m = np.clip(b, start, d)
        rising = ((m - a) ** 2 - (start - a) ** 2) / 2
        area = u[:, 0] * (rising + (b - a) * (d - m))
        t = np.where(area < rising, a + np.sqrt((start - a) ** 2 + 2 * area), m + (area - rising) / (b - a))
        t = np.clip(t, start, d)
        r_max = np.minimum(t, b)
        return np.minimum(a + (r_max - a) * u[:, 1], r_max), t


@dataclass(frozen=True)
class PointTimes(TimeSamplerBase):
    """One fixed pair (r, t)."""

    kind: ClassVar[str] = "point"
    width: ClassVar[int] = 0
    r: float
    t: float

    def __post_init__(self) -> None:
        self._require(0 <= self.r <= self.t <= 1, f"expected 0 <= r <= t <= 1, got r={self.r}, t={self.t}")

    def sample(self, u: np.ndarray, index: np.ndarray) -> TimePairs:
        """See `TimeSampler.sample`."""
        return np.full(len(index), self.r), np.full(len(index), self.t)


def parse_times(spec: str) -> TimeSampler:
    """The time sampler of a specification: a key of `TIMES` with arguments, such as `uniform:r_ne_t=0.25`.

    Raises InputError for an unknown name, a wrong number of arguments, an argument outside its range, or a file that
    does not hold a density.
    """
    spec = current_spelling(spec)
    name = spec.partition(":")[0]
    if name == DensityTimes.kind:
        return read_density(spec, parse_times)
    if name not in _SAMPLERS:
        raise did_you_mean("time sampler", name, TIMES)
    sampler = _SAMPLERS[name]
    return sampler(**parse_arguments(spec, sampler.defaults(), integers={"r_bins", "t_bins"}))


def same_times_note(times: TimeSampler) -> str | None:
    """What to say of a sampler all of whose pairs have r = t; None for any other."""
    numbers = np.arange(_PAIRS)
    r, t = times.sample(uniforms(0, "times", numbers, times.width), numbers)
    if (r < t).any():
        return None
    note = (
        f"--times {times.name} draws r = t for every pair, which is flow matching: no derivative enters the gradient."
    )
    return note + " The argument r_ne_t is the fraction of pairs with r != t." * hasattr(times, "r_ne_t")


_SAMPLERS: dict[str, Any] = {
    sampler.kind: sampler
    for sampler in (
        LogitNormalTimes,
        CappedTimes,
        SingleTimes,
        NoiseLevelTimes,
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
