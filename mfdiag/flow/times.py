"""Samplers of the time pair (r, t), 0 <= r <= t <= 1: where along the path a sample is measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any, ClassVar, Protocol

import numpy as np
from scipy.special import expit, ndtri

from mfdiag.errors import InputError, did_you_mean
from mfdiag.flow.specs import format_spec, parse_arguments

__all__ = [
    "TIMES",
    "GridTimes",
    "LogitNormalTimes",
    "PointTimes",
    "RestrictedTimes",
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
    "grid": "equally many samples in each cell of an r_bins x t_bins partition where r <= t: grid:r_bins,t_bins",
    "point": "one fixed pair: point:r,t",
}


class TimeSampler(Protocol):
    """A law of (r, t), drawn by transforming uniform numbers."""

    @property
    def name(self) -> str:
        """Canonical specification, the same for equal samplers: trailing arguments at their defaults are left out."""

    @property
    def width(self) -> int:
        """Uniform numbers one sample consumes."""

    @property
    def stratified(self) -> bool:
        """Whether the sample number decides the cell, so that samples are not identically distributed."""

    def sample(self, u: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(r, t), each float64 [n], from uniforms `u` [n, width] in (0, 1) and sample numbers `index` int64 [n]."""


Pair = tuple[np.ndarray, np.ndarray]


class _Sampler:
    """What the samplers share: dataclasses whose fields are the arguments of their specification."""

    kind: ClassVar[str]
    stratified: ClassVar[bool] = False

    @classmethod
    def defaults(cls) -> dict[str, float | None]:
        """Default of each argument by name, in order; None where it must be given."""
        return {
            key: None if given.default is given.empty else given.default
            for key, given in signature(cls).parameters.items()
        }

    @property
    def name(self) -> str:
        """See `TimeSampler.name`."""
        given = [(getattr(self, key), default) for key, default in self.defaults().items()]
        while given and given[-1][0] == given[-1][1]:
            given.pop()
        return format_spec(self.kind, *(value for value, _ in given))

    def _require(self, holds: bool, problem: str) -> None:
        if not holds:
            raise InputError(f"Bad {self.name!r}: {problem}.")


@dataclass(frozen=True)
class LogitNormalTimes(_Sampler):
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
        pair = np.sort(expit(self.mu + self.sigma * ndtri(u[:, :2])), axis=1)
        return np.where(u[:, 2] < self.r_ne_t, pair[:, 0], pair[:, 1]), pair[:, 1]


@dataclass(frozen=True)
class UniformTimes(_Sampler):
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
class RestrictedTimes(_Sampler):
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
class GridTimes(_Sampler):
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
class PointTimes(_Sampler):
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
    sampler.kind: sampler for sampler in (LogitNormalTimes, UniformTimes, RestrictedTimes, GridTimes, PointTimes)
}
