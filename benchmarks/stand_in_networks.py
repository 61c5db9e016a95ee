"""Networks of the structure of four repositories' networks, for benchmarks without their code."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfdiag.models.networks.dit import DiT

__all__ = ["STAND_INS"]

WIDTH = 64


class Times(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, r: Tensor, t: Tensor) -> Tensor:
        return self.body(torch.stack([r, t], 1))


class Actions(nn.Module):
    """A 1-D U-Net with a transposed convolution, and a head that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.times, self.unused = Times(2 * WIDTH), nn.Linear(26, 512)
        self.first, self.down = nn.Conv1d(26, WIDTH, 5, padding=2), nn.Conv1d(WIDTH, 2 * WIDTH, 3, 2, 1)
        self.middle, self.norm = nn.Conv1d(2 * WIDTH, 2 * WIDTH, 5, padding=2), nn.GroupNorm(8, 2 * WIDTH)
        self.up, self.last = nn.ConvTranspose1d(2 * WIDTH, WIDTH, 4, 2, 1), nn.Conv1d(2 * WIDTH, 26, 1)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        first = F.mish(self.first(x.transpose(1, 2)))
        h = F.mish(self.down(first)) * (1 + self.times(r, t)[..., None])
        h = h + F.mish(self.norm(self.middle(h)))
        return self.last(torch.cat([self.up(h), first], 1)).transpose(1, 2)


class ChannelLast(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Audio(nn.Module):
    """A transformer with channel-last convolutions, and parameters that only another caller uses."""

    def __init__(self) -> None:
        super().__init__()
        self.times, self.mean = Times(WIDTH), nn.Parameter(torch.ones(1, 1, 20))
        self.first, self.last = ChannelLast(20, WIDTH, 7, padding=3), ChannelLast(WIDTH, 20, 7, padding=3)
        self.qkv, self.norms = nn.ModuleList(), nn.ModuleList()
        self.wide, self.narrow = nn.ModuleList(), nn.ModuleList()
        for _ in range(4):
            self.qkv.append(nn.Linear(WIDTH, 3 * WIDTH))
            self.norms.append(nn.RMSNorm(WIDTH // 4))
            self.wide.append(ChannelLast(WIDTH, 4 * WIDTH, 3, padding=1, bias=False))
            self.narrow.append(ChannelLast(4 * WIDTH, WIDTH, 3, padding=1, bias=False))

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.first(x) + self.times(r, t)[:, None]
        for qkv, norm, wide, narrow in zip(self.qkv, self.norms, self.wide, self.narrow, strict=True):
            q, k, v = (a.unflatten(2, (4, -1)).transpose(1, 2) for a in qkv(h).chunk(3, -1))
            h = h + F.scaled_dot_product_attention(norm(q), norm(k), v).transpose(1, 2).flatten(2)
            h = h + narrow(F.silu(wide(h)))
        return self.last(h)


class ChannelNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(WIDTH, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * (self.gamma + 1) * WIDTH**0.5


class Images(nn.Module):
    """Convolutions with norms of their own, and attention with a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.times, self.first, self.last = Times(WIDTH), nn.Conv2d(3, WIDTH, 7, padding=3), nn.Conv2d(WIDTH, 3, 1)
        self.convolutions = nn.ModuleList([nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(6)])
        self.norms = nn.ModuleList([ChannelNorm() for _ in range(6)])
        self.memory, self.qkv = nn.Parameter(torch.randn(2, 4, WIDTH)), nn.Conv2d(WIDTH, 3 * WIDTH, 1, bias=False)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.first(x) + self.times(r, t)[..., None, None]
        for layer, norm in zip(self.convolutions, self.norms, strict=True):
            h = h + F.silu(norm(layer(h)))
        q, k, v = (a.flatten(2).transpose(1, 2) for a in self.qkv(F.avg_pool2d(h, 2)).chunk(3, 1))
        k, v = (torch.cat([m[None].expand(len(x), -1, -1), a], 1) for m, a in zip(self.memory, (k, v), strict=True))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(2, (h.shape[2] // 2, -1))
        return self.last(h + F.interpolate(seen, scale_factor=2.0))


STAND_INS: dict[str, Callable[[], nn.Module]] = {
    "mp1": Actions,
    "mean_audio": Audio,
    "rectified_flow": Images,
    "sit": lambda: DiT(4, size=16, width=192, depth=6, heads=3),
}
"""By the name that `real_networks.py` takes."""
