"""Convolutional U-Nets (arXiv 1505.04597, with the residual blocks of DDPM, 2006.11239) on images and sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.models.networks.dit import Attention, TimeEmbedding
from mfdiag.models.networks.mlp import label_embedding, labels_or_null

__all__ = ["UNet", "UNet1d"]

_GROUPS = 8
_CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}


class _Block(nn.Module):
    """Two convolutions with a residual connection; the condition [n, c] scales and shifts between them."""

    def __init__(self, axes: int, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        convolution = _CONVOLUTIONS[axes]
        self.norm1 = nn.GroupNorm(_groups(inputs), inputs)
        self.conv1 = convolution(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(condition, 2 * outputs)
        self.norm2 = nn.GroupNorm(_groups(outputs), outputs)
        self.conv2 = convolution(outputs, outputs, 3, padding=1)
        self.skip = convolution(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(F.silu(condition)).view(len(x), -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        return self.skip(x) + self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))


class _Middle(nn.Module):
    """Attention over all positions, with a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_groups(width), width)
        self.attention = Attention(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        return x + self.attention(tokens).transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """Average velocity u(x, r, t) of images [channels, height, width], conditioned on t and t - r.

    Level l has `width` times `multipliers[l]` channels and `blocks` residual blocks on the way down and on the way up;
    between levels the size is halved, rounding up. Attention stands in the middle. Times are multiplied by
    `time_scale` before their sinusoidal features. With `num_classes` = 0 labels are ignored.
    Raises InputError on sizes below 1 and heads that do not divide the middle's channels.
    """

    axes = 2

    def __init__(
        self,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        heads: int = 2,
        num_classes: int = 0,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        sizes = [width * factor for factor in multipliers]
        if min([channels, blocks, heads, *sizes], default=0) < 1 or not sizes or sizes[-1] % heads or num_classes < 0:
            raise InputError(
                f"{type(self).__name__} needs positive sizes and heads dividing the last level's channels, but got "
                f"channels={channels}, width={width}, multipliers={list(multipliers)}, blocks={blocks}, heads={heads}, "
                f"num_classes={num_classes}; correct the model's arguments."
            )
        convolution, condition = _CONVOLUTIONS[self.axes], 4 * width
        self.num_classes = num_classes
        self.time = TimeEmbedding(condition, time_scale)
        self.interval = TimeEmbedding(condition, time_scale)
        self.label = label_embedding(num_classes, condition)
        self.enter = convolution(channels, sizes[0], 3, padding=1)
        self.down, self.shrink, self.grow, self.up = (nn.ModuleList() for _ in range(4))
        now = sizes[0]
        for size in sizes:
            self.down.append(_level(self.axes, now, size, condition, blocks))
            self.shrink.append(convolution(size, size, 3, stride=2, padding=1))
            now = size
        del self.shrink[-1]  # the last level leads to the middle as it is
        self.middle = _Middle(now, heads)
        for size in reversed(sizes):
            self.grow.append(convolution(now, size, 3, padding=1))
            self.up.append(_level(self.axes, 2 * size, size, condition, blocks))
            now = size
        self.norm = nn.GroupNorm(_groups(now), now)
        self.leave = convolution(now, channels, 3, padding=1)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """u, shaped as x [n, channels, ...], from times r and t [n] in [0, 1], labels y int64 [n] or None."""
        condition = self.time(t) + self.interval(t - r)
        if self.label is not None:
            condition = condition + self.label(labels_or_null(y, self.label, x))
        h = self.enter(x)
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            h = _through(blocks, self.shrink[level - 1](h) if level else h, condition)
            skips.append(h)
        h = self.middle(h)
        for grow, blocks in zip(self.grow, self.up, strict=True):
            skip = skips.pop()
            h = grow(F.interpolate(h, size=skip.shape[2:]) if h.shape[2:] != skip.shape[2:] else h)
            h = _through(blocks, torch.cat([h, skip], dim=1), condition)
        return self.leave(F.silu(self.norm(h)))


class UNet1d(UNet):
    """`UNet` on sequences [channels, length]."""

    axes = 1


def _groups(channels: int) -> int:
    """Up to eight groups of equal size, of four channels or more where there are as many."""
    return next(groups for groups in range(max(1, min(_GROUPS, channels // 4)), 0, -1) if channels % groups == 0)


def _level(axes: int, inputs: int, outputs: int, condition: int, blocks: int) -> nn.ModuleList:
    return nn.ModuleList(_Block(axes, outputs if k else inputs, outputs, condition) for k in range(blocks))


def _through(blocks: nn.Module, h: Tensor, condition: Tensor) -> Tensor:
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        h = block(h, condition)
    return h
