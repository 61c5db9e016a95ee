"""The interface of samplers of the time pair (r, t), and what the built-in ones share."""

from __future__ import annotations

from inspect import signature
from typing import ClassVar, Protocol

import numpy as np
from scipy.special import expit, ndtri

from mfdiag.errors import InputError
from mfdiag.flow.specs import format_spec

__all__ = ["TimePairs", "TimeSampler", "TimeSamplerBase", "logit_normal_pairs", "time_cells"]

TimePairs = tuple[np.ndarray, np.ndarray]
"""r and t, each float64 [n]."""


class TimeSampler(Protocol):
    """A distribution of (r, t), 0 <= r <= t <= 1, sampled by transforming uniform numbers."""

    @property
    def name(self) -> str:
        """Canonical specification, the same for equal samplers: trailing default arguments are left out."""

    @property
    def width(self) -> int:
        """Uniform numbers that one sample uses."""

    @property
    def stratified(self) -> bool:
        """Whether the sample number decides the cell, so that samples are not identically distributed."""

    def sample(self, u: np.ndarray, index: np.ndarray) -> TimePairs:
        """(r, t), each float64 [n], from uniform numbers `u` [n, width] in (0, 1) and sample numbers `index` [n]."""

    def weight(self, r: np.ndarray, t: np.ndarray) -> np.ndarray | None:
        """Importance weight [n] of the loss at these pairs; None if all weights are 1."""

    def __hash__(self) -> int:
        """Samplers are values."""


class TimeSamplerBase:
    """Base of the built-in samplers: dataclasses whose fields are the arguments of their specification."""

    kind: ClassVar[str]
    stratified: ClassVar[bool] = False
    spelled_from: ClassVar[str | None] = None
    """The first argument that `name` spells `key=value`, as it does all that follow; None for none."""

    @classmethod
    def defaults(cls) -> dict[str, float | None]:
        """Default of each argument by name, in order; None if the argument is required."""
        return {
            key: None if parameter.default is parameter.empty else parameter.default
            for key, parameter in signature(cls).parameters.items()
        }

    @property
    def name(self) -> str:
        """See `TimeSampler.name`."""
        defaults = self.defaults()
        keys = list(defaults)
        split = len(keys) if self.spelled_from is None else keys.index(self.spelled_from)
        positional, spelled = keys[:split], keys[split:]
        while positional and getattr(self, positional[-1]) == defaults[positional[-1]]:
            positional.pop()
        changed = {key: getattr(self, key) for key in spelled if getattr(self, key) != defaults[key]}
        return format_spec(self.kind, *(getattr(self, key) for key in positional), **changed)

    def weight(self, r: np.ndarray, t: np.ndarray) -> np.ndarray | None:
        """See `TimeSampler.weight`."""
        return None

    def _require(self, condition: bool, problem: str) -> None:
        if not condition:
            raise InputError(f"Bad {self.name!r}: {problem}.")

    def _require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._require(value > 0, f"{name} must be above 0, got {value}")

    def _require_fraction(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._require(0 <= value <= 1, f"{name} must be in [0, 1], got {value}")


def logit_normal_pairs(u: np.ndarray, mu: float, sigma: float) -> TimePairs:
    """Sorted pairs of two draws of sigmoid(N(mu, sigma^2)).

    Args:
        u: Uniform numbers [n, 2] in (0, 1).
        mu: Mean of the normal distribution.
        sigma: Standard deviation of the normal distribution, above 0.

    Returns:
        The smaller and the larger draw, each float64 [n].
    """
    pairs = np.sort(expit(mu + sigma * ndtri(u)), axis=1)
    return pairs[:, 0], pairs[:, 1]


def time_cells(r_bins: int, t_bins: int) -> np.ndarray:
    """Cells of the `r_bins` x `t_bins` partition of the unit square that contain pairs with r < t.

    Returns r_low, r_high, t_low, t_high of each cell, float64 [C, 4], ordered by r, then t. Cells on the diagonal also
    contain pairs with r > t.
    """
    r, t = np.divmod(np.arange(r_bins * t_bins), t_bins)
    inside = r * t_bins < (t + 1) * r_bins  # r_low < t_high, in whole numbers
    r, t = r[inside], t[inside]
    return np.stack([r / r_bins, (r + 1) / r_bins, t / t_bins, (t + 1) / t_bins], axis=1)
