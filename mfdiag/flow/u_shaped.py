"""Re-MeanFlow's law of (r, t): most samples near the two ends of the path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import expit, ndtri

from mfdiag.flow.time_sampler import Pair, Sampler

__all__ = ["UShapedTimes"]

_RATE = 4.0  # of 2-rectified flow++ (arXiv 2405.20320, section 4.1)
_LAST = 80 / 81  # EDM's largest noise level, 80, as a time: t = sigma / (1 + sigma)
_LATE, _EARLY = 0.8, 0.4


@dataclass(frozen=True)
class UShapedTimes(Sampler):
    """Re-MeanFlow (arXiv 2511.23342 and its code): t U-shaped, and an interval of logit-normal length below it.

    t has density proportional to e^(4 t) + e^(4 (1 - t)) on [0, 1], cut at 80/81; r = max(t - h, 0) with
    h = sigmoid(N(mu, sigma^2)), and 0 where t > 0.8 and r < 0.4; with probability 1 - `r_ne_t` it is t.
    """

    kind: ClassVar[str] = "u_shaped"
    width: ClassVar[int] = 3
    mu: float = -0.8
    sigma: float = 1.0
    r_ne_t: float = 0.25

    def __post_init__(self) -> None:
        self._require(self.sigma > 0, f"sigma must be above 0, got {self.sigma}")
        self._require(0 <= self.r_ne_t <= 1, f"r_ne_t must be in [0, 1], got {self.r_ne_t}")

    def sample(self, u: np.ndarray, index: np.ndarray) -> Pair:
        """See `TimeSampler.sample`."""
        # e^(a x) has the distribution function (e^(a x) - 1) / (e^a - 1); each half of u takes one of the two slopes
        up = np.log1p(2 * np.abs(u[:, 0] - 0.5) * np.expm1(_RATE)) / _RATE
        t = np.clip(np.where(u[:, 0] < 0.5, 1 - up, up), 0, _LAST)
        r = np.maximum(t - expit(self.mu + self.sigma * ndtri(u[:, 1])), 0)
        r = np.where((t > _LATE) & (r < _EARLY), 0, r)
        return np.where(u[:, 2] < self.r_ne_t, r, t), t
