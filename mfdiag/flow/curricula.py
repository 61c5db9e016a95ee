"""Laws of (r, t) that change during training, at a given progress: from instantaneous to average velocity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import expit

from mfdiag.flow.time_sampler import Pair, Sampler, logit_normal_pair

__all__ = ["AlphaFlowTimes", "MeanAudioTimes", "alpha_at"]


def alpha_at(progress: float, gamma: float = 25.0, clamp: float = 0.005) -> float:
    """alpha-Flow's coefficient at a share `progress` of its annealing: 1 is trajectory flow matching, 0 is MeanFlow.

    A falling sigmoid of steepness `gamma`, set to 1 and 0 where it is within `clamp` of them (arXiv 2510.20771).
    """
    alpha = float(expit(-gamma * (progress - 0.5)))
    return 1.0 if alpha > 1 - clamp else 0.0 if alpha < clamp else alpha


@dataclass(frozen=True)
class AlphaFlowTimes(Sampler):
    """The interval [r, s] on which alpha-Flow's target asks the model, s = alpha r + (1 - alpha) t (arXiv 2510.20771).

    (r, t) is MeanFlow's logit-normal pair, kept apart for a share `r_ne_t`; alpha is `alpha_at(progress)`. Hence
    MeanFlow's own law at the end, and r = s, where flow matching would be, at the beginning.
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
        for name in ("progress", "r_ne_t"):
            value = getattr(self, name)
            self._require(0 <= value <= 1, f"{name} must be in [0, 1], got {value}")
        self._require(0 <= self.clamp < 0.5, f"clamp must be in [0, 0.5), got {self.clamp}")
        self._require(self.gamma > 0, f"gamma must be above 0, got {self.gamma}")
        self._require(self.sigma > 0, f"sigma must be above 0, got {self.sigma}")

    def sample(self, u: np.ndarray, index: np.ndarray) -> Pair:
        """See `TimeSampler.sample`."""
        r, t = logit_normal_pair(u[:, :2], self.mu, self.sigma)
        r = np.where(u[:, 2] < self.r_ne_t, r, t)
        alpha = alpha_at(self.progress, self.gamma, self.clamp)
        return r, np.maximum(alpha * r + (1 - alpha) * t, r)


@dataclass(frozen=True)
class MeanAudioTimes(Sampler):
    """MeanAudio's instantaneous-to-mean curriculum with flow-field mix-up (arXiv 2508.06098).

    Until the share `switch` of training every pair has r = t; after it a share `r_eq_t` has, the rest being MeanFlow's
    logit-normal pairs.
    """

    kind: ClassVar[str] = "mean_audio"
    width: ClassVar[int] = 3
    progress: float
    switch: float = 0.5
    r_eq_t: float = 0.75
    mu: float = -0.4
    sigma: float = 1.0

    def __post_init__(self) -> None:
        for name in ("progress", "switch", "r_eq_t"):
            value = getattr(self, name)
            self._require(0 <= value <= 1, f"{name} must be in [0, 1], got {value}")
        self._require(self.sigma > 0, f"sigma must be above 0, got {self.sigma}")

    def sample(self, u: np.ndarray, index: np.ndarray) -> Pair:
        """See `TimeSampler.sample`."""
        r, t = logit_normal_pair(u[:, :2], self.mu, self.sigma)
        share = 1.0 if self.progress < self.switch else self.r_eq_t
        return np.where(u[:, 2] < 1 - share, r, t), t
