"""The velocity of a network on another path than the one it was trained on (docs/theory.md#velocity-path-change)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mfdiag.flow.conditions import Condition
from mfdiag.flow.paths import Path
from mfdiag.models.wrapper import Wrapper

__all__ = ["PathChange", "noise_share", "time_of_share"]

_HALVINGS = 52  # of the interval of times: to the rounding of float64
_TOLERANCE = 1e-6  # of a time, below which two paths are said to end at the same noise


class PathChange(Wrapper):
    """v(x_t, t) on `path`, from a network's velocity on the path `own`.

    Both paths have the same points up to a factor, where the ratio of noise and data is the same. The network is
    evaluated there, and what it says of x_0 and x_1 becomes the velocity of `path`. Beyond the ends of `own`, it is
    evaluated at the end: `range` are the times of `path` that `own` covers.

    Args:
        network: The network as average velocity on `own`; it is called with r = t alone.
        own: The path it was trained on.
        path: The path it is asked about.
    """

    def __init__(self, network: nn.Module, own: Path, path: Path) -> None:
        super().__init__(network)
        self.own, self.path = own, path
        self.num_classes = getattr(network, "num_classes", 0)
        ends = noise_share(own, torch.tensor([0.0, 1.0], dtype=torch.float64))
        low, high = time_of_share(path, ends).tolist()
        self.range = (low if low > _TOLERANCE else 0.0, high if high < 1 - _TOLERANCE else 1.0)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Condition = None) -> Tensor:
        """The velocity at time t.

        Args:
            x: Points x_t [n, *shape] of `path`.
            r: Ignored: the network's own interval has another average on `path`.
            t: Times t [n] in [0, 1].
            y: Labels int64 [n], `Conditions`, or None.

        Returns:
            v, shaped as x.
        """
        time, factors = self._map(t.double())
        scale, point, velocity, moved = (f.to(x).view(-1, *[1] * (x.ndim - 1)) for f in factors)
        time = time.to(t)
        own = scale * x
        return point * x + velocity * (self.network(own, time, time, y) - moved * own)

    def _map(self, t: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """The network's time [n], and the factors c, p, q, m [n] of v = p x_t + q (V(c x_t) - m c x_t)."""
        path, own = self.path, self.own
        time = time_of_share(own, noise_share(path, t))
        a, s, (da, ds) = path.alpha(t), path.sigma(t), path.rates(t)
        b, q, (db, dq) = own.alpha(time), own.sigma(time), own.rates(time)
        scale = (b + q) / (a + s)  # X = b x_0 + q x_1 = scale x_t where q / b = s / a
        # V = b' x_0 + q' x_1, so that V - (q'/q) X = -(D/q) x_0 and V - (b'/b) X = (D/b) x_1, D = b q' - b' q.
        # With x_0 known, v = (s'/s) x_t - (d/s) x_0; with x_1 known, v = (a'/a) x_t + (d/a) x_1, d = a s' - a' s.
        # Where V is the network's, both are the same but beyond the ends of its path. Take the one that divides by the
        # larger of a and s.
        d, own_d = a * ds - da * s, b * dq - db * q
        noisy = s > a
        point = torch.where(noisy, ds, da) / torch.where(noisy, s, a)
        moved = torch.where(noisy, dq, db) / torch.where(noisy, q, b)
        ratio = torch.where(noisy, q, b) / torch.where(noisy, s, a)
        return time, (scale, point, ratio * d / own_d, moved)


def noise_share(path: Path, t: Tensor) -> Tensor:
    """sigma / (alpha + sigma) at times t [n]: 0 for data, 1 for noise."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    return sigma / (alpha + sigma)


def time_of_share(path: Path, share: Tensor) -> Tensor:
    """The time [n] in [0, 1] at which `noise_share` is `share` [n] float64, or the nearest end; differentiable."""
    low, high = torch.zeros_like(share), torch.ones_like(share)
    target = share.detach()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = noise_share(path, middle) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    # Newton's step from t: dw/dt = (alpha sigma' - alpha' sigma) / (alpha + sigma)^2. Its derivative is dt/dw.
    t = (low + high) / 2
    alpha, sigma, (da, ds) = path.alpha(t), path.sigma(t), path.rates(t)
    slope = (alpha * ds - da * sigma) / (alpha + sigma).square()
    inside = (target > noise_share(path, torch.zeros_like(t))) & (target < noise_share(path, torch.ones_like(t)))
    step = torch.where(inside & (slope > 0), (share - sigma / (alpha + sigma)) / slope, torch.zeros_like(t))
    return (t + step).clamp(0, 1)
