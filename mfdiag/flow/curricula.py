"""Distributions of (r, t) that change during training, at a given progress: from instantaneous to average velocity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import expit

from mfdiag.flow.time_sampler import TimePairs, TimeSamplerBase, logit_normal_pairs
from mfdiag.flow.time_shares import SHARE

__all__ = ["AlphaFlowTimes", "MeanAudioTimes", "alpha_at"]


def alpha_at(progress: float, gamma: float = 25.0, clamp: float = 0.005) -> float:
    """alpha-Flow's coefficient (arXiv 2510.20771): 1 is trajectory flow matching, 0 is MeanFlow.

    Args:
        progress: Completed fraction of the annealing, in [0, 1].
        gamma: Steepness of the falling sigmoid, above 0.
        clamp: Distance from 0 and 1 within which the coefficient is set to 0 or 1, in [0, 0.5).

    Returns:
        The coefficient, in [0, 1].
    """
    alpha = float(expit(-gamma * (progress - 0.5)))
    return 1.0 if alpha > 1 - clamp else 0.0 if alpha < clamp else alpha


@dataclass(frozen=True)
class AlphaFlowTimes(TimeSamplerBase):
    """The interval [r, s] at which alpha-Flow's target evaluates the model (arXiv 2510.20771).

    s = alpha r + (1 - alpha) t with alpha = `alpha_at(progress)`, where (r, t) is MeanFlow's logit-normal pair, with
    r != t for the fraction `r_ne_t`. At progress 1 this is MeanFlow's own distribution. At progress 0, r = s, as in
    flow matching.
    """

    kind: ClassVar[str] = "alpha_flow"
    width: ClassVar[int] = 3
    progress: float
    r_ne_t: float = 0.5
    gamma: float = 25.0
    clamp: float = 0.005
    mu: float = -0.4
    sigma: float = 1.0

    def __post_init__(self) -> None:
        self._require_fraction("progress", "r_ne_t")
        self._require(0 <= self.clamp < 0.5, f"clamp must be in [0, 0.5), got {self.clamp}")
        self._require_positive("gamma", "sigma")

    def sample(self, u: np.ndarray, index: np.ndarray) -> TimePairs:
        """See `TimeSampler.sample`."""
        r, t = logit_normal_pairs(u[:, :2], self.mu, self.sigma)
        r = np.where(u[:, 2] < self.r_ne_t, r, t)
        alpha = alpha_at(self.progress, self.gamma, self.clamp)
        return r, np.maximum(alpha * r + (1 - alpha) * t, r)


@dataclass(frozen=True)
class MeanAudioTimes(TimeSamplerBase):
    """MeanAudio's instantaneous-to-mean curriculum with flow-field mix-up (arXiv 2508.06098).

    Before progress `switch` every pair has r = t. After it, the fraction `r_ne_t` are MeanFlow's logit-normal pairs,
    and the rest have r = t.
    """

    kind: ClassVar[str] = "mean_audio"
    width: ClassVar[int] = 3
    spelled_from: ClassVar[str | None] = SHARE
    progress: float
    switch: float = 0.5
    r_ne_t: float = 0.25
    mu: float = -0.4
    sigma: float = 1.0

    def __post_init__(self) -> None:
        self._require_fraction("progress", "switch", "r_ne_t")
        self._require_positive("sigma")

    def sample(self, u: np.ndarray, index: np.ndarray) -> TimePairs:
        """See `TimeSampler.sample`."""
        r, t = logit_normal_pairs(u[:, :2], self.mu, self.sigma)
        r_ne_t = 0.0 if self.progress < self.switch else self.r_ne_t
        return np.where(u[:, 2] < r_ne_t, r, t), t
