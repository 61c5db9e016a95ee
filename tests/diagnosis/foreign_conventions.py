"""The bundled network as if it had been trained in another convention: written out by hand, without cards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Foreign", "Spoken"]


@dataclass(frozen=True)
class Spoken:
    """A convention: what the two time arguments hold, direction, sign, factor on times, prediction, factor on data."""

    slots: tuple[str, str] = ("r", "t")
    direction: str = "D0"
    sign: int = 1
    time_scale: float = 1.0
    prediction: str = "u"
    factor: float = 1.0


class Foreign(nn.Module):
    """`inner`(x, r, t) as a network with two time arguments whose names do not tell what they are."""

    def __init__(self, inner: nn.Module, spoken: Spoken) -> None:
        super().__init__()
        self.inner, self.spoken = inner, spoken

    def forward(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        spoken = self.spoken
        words = {name: time / spoken.time_scale for name, time in zip(spoken.slots, (first, second), strict=True)}
        if spoken.prediction == "denoised":  # of x_t / (1 - t) at noise levels t / (1 - t)
            words = {name: level / (1 + level) for name, level in words.items()}
            x = (1 - words["t"][:, None]) * x
        reverse = spoken.direction == "D1"
        t = 1 - words["t"] if reverse else words["t"]
        r = t - words["h"] if "h" in words else 1 - words["r"] if reverse else words["r"]
        u = self.scaled(x, r, t)
        time = t[:, None]
        if spoken.prediction in ("x", "denoised"):
            return spoken.sign * (x - time * u)
        if spoken.prediction == "eps":
            return spoken.sign * (x + (1 - time) * u)
        if spoken.prediction == "v":
            data, noise = x - time * u, x + (1 - time) * u
            return spoken.sign * ((1 - time) * noise - time * data)
        return spoken.sign * (-u if reverse else u)

    def scaled(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """u for data times k: observations x_0 + rho x_1 are the same at other times, and so are trajectories."""
        k = self.spoken.factor
        if k == 1:
            return self.inner(x, r, t)
        # at time t' with t' / (1 - t') = rho / k the inner network sees the same observation of the unscaled data
        inner_t, inner_r = (time / (k * (1 - time) + time) for time in (t, r))
        ratio = ((1 - inner_t) / (k * (1 - t)))[:, None]
        inner_x = ratio * x
        u = self.inner(inner_x, inner_r, inner_t)
        start = inner_x - (inner_t - inner_r)[:, None] * u
        moved = (k * (1 - r) / (1 - inner_r))[:, None] * start
        average = (x - moved) / (t - r).clamp_min(1e-12)[:, None]
        data = inner_x - inner_t[:, None] * u
        velocity = (x - k * data) / t[:, None]
        return torch.where((t > r)[:, None], average, velocity)
