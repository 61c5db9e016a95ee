"""The network of make.py in torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Port(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.times, self.label = nn.Linear(2, 8), nn.Embedding(4, 8)
        self.enter = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8, eps=1e-6)
        self.blocks = nn.ModuleList(
            [nn.ModuleDict({"norm": nn.LayerNorm(8, eps=1e-6), "attention": self._attention()})]
        )
        self.down, self.up = nn.Conv2d(8, 10, 2, 2), nn.ConvTranspose2d(10, 6, 2, 2)
        self.leave = nn.Conv2d(6, 3, 1)

    def _attention(self) -> nn.Module:
        return nn.MultiheadAttention(8, 2, batch_first=True)

    def _attend(self, attention: nn.Module, x: Tensor) -> Tensor:
        return attention(x, x, x, need_weights=False)[0]

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        condition = self.times(torch.stack([t, t - r], 1)) + self.label(y)
        x = nn.functional.gelu(self.norm(self.enter(x) + condition[:, :, None, None]))
        tokens = x.flatten(2).mT
        for block in self.blocks:
            tokens = tokens + self._attend(block["attention"], block["norm"](tokens))
        down = self.down(tokens.mT.unflatten(2, (4, 4)))
        return self.leave(self.up(nn.functional.silu(down)))


class Split(nn.Module):
    """Attention by four linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SplitPort(Port):
    def _attention(self) -> nn.Module:
        return Split()

    def _attend(self, attention: nn.Module, x: Tensor) -> Tensor:
        return attention(x)
