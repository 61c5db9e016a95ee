"""Convolutional U-Nets on images and sequences (arXiv 1505.04597), with the residual blocks of DDPM (2006.11239)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.models.networks.dit import Attention, TimeEmbedding
from mfdiag.models.networks.mlp import label_embedding, labels_or_null

__all__ = ["UNet", "UNet1d"]

_MAX_GROUPS = 8  # of a group norm
_MIN_CHANNELS_PER_GROUP = 4
_CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}


class _ResidualBlock(nn.Module):
    """Two convolutions with a residual connection; the condition [n, c] scales and shifts the features in between."""

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


class _MiddleAttention(nn.Module):
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

    Level l has `width` times `multipliers[l]` channels, with `blocks` residual blocks on the down path and as many on
    the up path. Between levels the size is halved and rounded up. The middle has attention. Times are multiplied by
    `time_scale` before their sinusoidal features. With `num_classes` = 0, labels are ignored.

    Raises:
        InputError: If a size is below 1, or `heads` does not divide the channels of the last level.
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
                f"{type(self).__name__} needs positive sizes and heads that divide the last level's channels, but got "
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
        inputs = sizes[0]
        for size in sizes:
            self.down.append(_level(self.axes, inputs, size, condition, blocks))
            self.shrink.append(convolution(size, size, 3, stride=2, padding=1))
            inputs = size
        del self.shrink[-1]  # the last level feeds the middle at its own size
        self.middle = _MiddleAttention(inputs, heads)
        for size in reversed(sizes):
            self.grow.append(convolution(inputs, size, 3, padding=1))
            self.up.append(_level(self.axes, 2 * size, size, condition, blocks))
            inputs = size
        self.norm = nn.GroupNorm(_groups(inputs), inputs)
        self.leave = convolution(inputs, channels, 3, padding=1)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Average velocity u.

        Args:
            x: Points x_t [n, channels, height, width]; `UNet1d` takes [n, channels, length].
            r: Times r [n] in [0, 1], the other end of the interval.
            t: Times t [n] in [0, 1] of the points.
            y: Labels int64 [n]; None stands for the null label.

        Returns:
            u, shaped as x.
        """
        condition = self.time(t) + self.interval(t - r)
        if self.label is not None:
            condition = condition + self.label(labels_or_null(y, self.label, x))
        h = self.enter(x)
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            h = _apply_level(blocks, self.shrink[level - 1](h) if level else h, condition)
            skips.append(h)
        h = self.middle(h)
        for grow, blocks in zip(self.grow, self.up, strict=True):
            skip = skips.pop()
            h = grow(F.interpolate(h, size=skip.shape[2:]) if h.shape[2:] != skip.shape[2:] else h)
            h = _apply_level(blocks, torch.cat([h, skip], dim=1), condition)
        return self.leave(F.silu(self.norm(h)))


class UNet1d(UNet):
    """`UNet` on sequences [channels, length]."""

    axes = 1


def _groups(channels: int) -> int:
    """The largest number of equal groups, up to eight, that leaves each at least four channels; at least one group."""
    most = max(1, min(_MAX_GROUPS, channels // _MIN_CHANNELS_PER_GROUP))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def _level(axes: int, inputs: int, outputs: int, condition: int, blocks: int) -> nn.ModuleList:
    return nn.ModuleList(_ResidualBlock(axes, outputs if k else inputs, outputs, condition) for k in range(blocks))


def _apply_level(blocks: nn.Module, h: Tensor, condition: Tensor) -> Tensor:
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        h = block(h, condition)
    return h
