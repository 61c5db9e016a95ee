"""What samplers of the time pair (r, t) are, and what they share."""

from __future__ import annotations

from inspect import signature
from typing import ClassVar, Protocol

import numpy as np
from scipy.special import expit, ndtri

from mfdiag.errors import InputError
from mfdiag.flow.specs import format_spec

__all__ = ["Pair", "Sampler", "TimeSampler", "logit_normal_pair", "time_cells"]

Pair = tuple[np.ndarray, np.ndarray]
"""r and t, each [n]."""


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

    def weight(self, r: np.ndarray, t: np.ndarray) -> np.ndarray | None:
        """Importance weight [n] of the loss at these pairs; None where all are 1."""

    def __hash__(self) -> int:
        """Samplers are values."""


class Sampler:
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

    def weight(self, r: np.ndarray, t: np.ndarray) -> np.ndarray | None:
        """See `TimeSampler.weight`."""
        return None

    def _require(self, holds: bool, problem: str) -> None:
        if not holds:
            raise InputError(f"Bad {self.name!r}: {problem}.")


def logit_normal_pair(u: np.ndarray, mu: float, sigma: float) -> Pair:
    """The sorted pair of two draws of sigmoid(N(mu, sigma^2)), from uniforms `u` [n, 2]."""
    pair = np.sort(expit(mu + sigma * ndtri(u)), axis=1)
    return pair[:, 0], pair[:, 1]


def time_cells(r_bins: int, t_bins: int) -> np.ndarray:
    """Cells of the `r_bins` x `t_bins` partition of the unit square that hold some r < t, in order of r, then t.

    Returns r_low, r_high, t_low, t_high of each, float64 [C, 4]; cells on the diagonal hold pairs with r > t too.
    """
    r, t = np.divmod(np.arange(r_bins * t_bins), t_bins)
    inside = r * t_bins < (t + 1) * r_bins  # r_low < t_high, in whole numbers
    r, t = r[inside], t[inside]
    return np.stack([r / r_bins, (r + 1) / r_bins, t / t_bins, (t + 1) / t_bins], axis=1)
