"""Re-MeanFlow's distribution of (r, t): most samples lie near the two ends of the path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import expit, ndtri

from mfdiag.flow.time_sampler import TimePairs, TimeSamplerBase

__all__ = ["UShapedTimes"]

_RATE = 4.0  # of 2-rectified flow++ (arXiv 2405.20320, section 4.1)
_MAX_TIME = 80 / 81  # EDM's largest noise level, 80, as a time: t = sigma / (1 + sigma)
_LATE, _EARLY = 0.8, 0.4  # an interval that starts after _LATE and would end before _EARLY ends at 0


@dataclass(frozen=True)
class UShapedTimes(TimeSamplerBase):
    """Re-MeanFlow (arXiv 2511.23342 and its code): t is U-shaped, and the interval below it has logit-normal length.

    t has density proportional to e^(4 t) + e^(4 (1 - t)) on [0, 1], capped at 80/81. r = max(t - h, 0) with
    h = sigmoid(N(mu, sigma^2)), but r = 0 if t > 0.8 and r < 0.4. With probability 1 - `r_ne_t`, r = t.
    """

    kind: ClassVar[str] = "u_shaped"
    width: ClassVar[int] = 3
    mu: float = -0.8
    sigma: float = 1.0
    r_ne_t: float = 0.25

    def __post_init__(self) -> None:
        self._require_positive("sigma")
        self._require_fraction("r_ne_t")

    def sample(self, u: np.ndarray, index: np.ndarray) -> TimePairs:
        """See `TimeSampler.sample`."""
        # e^(a x) has the distribution function (e^(a x) - 1) / (e^a - 1); each half of u takes one of the two slopes
        rise = np.log1p(2 * np.abs(u[:, 0] - 0.5) * np.expm1(_RATE)) / _RATE
        t = np.clip(np.where(u[:, 0] < 0.5, 1 - rise, rise), 0, _MAX_TIME)
        r = np.maximum(t - expit(self.mu + self.sigma * ndtri(u[:, 1])), 0)
        r = np.where((t > _LATE) & (r < _EARLY), 0, r)
        return np.where(u[:, 2] < self.r_ne_t, r, t), t
