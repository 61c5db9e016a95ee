"""Torch networks, named in model cards, with the parameters of networks that are written for JAX."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mfdiag.errors import did_you_mean
from mfdiag.models.networks.dit import DiT

__all__ = ["MeanFlowDiT", "meanflow_dit", "sine_positions"]

_DIT_SIZES = {"XL": (1152, 28, 16), "L": (1024, 24, 16), "M": (1024, 16, 16), "B": (768, 12, 12), "S": (384, 12, 6)}
_PATCHES = (2, 4, 8)


class MeanFlowDiT(DiT):
    """The DiT of Gsunshine/meanflow (JAX): a fixed position embedding, and patches with their channels last."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        _, tokens, width = self.pos_embed.shape
        self.pos_embed.requires_grad_(False).copy_(sine_positions(round(tokens**0.5), width))

    def _to_patches(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 4, 3, 5, 1)

    def _from_patches(self, tokens: Tensor, side: int, channels: int) -> Tensor:
        patches = tokens.reshape(tokens.shape[0], side, side, self.patch, self.patch, channels)
        return patches.permute(0, 5, 1, 3, 2, 4)


def meanflow_dit(
    size: str, input_size: int = 32, in_channels: int = 4, num_classes: int = 1000, **changes: Any
) -> nn.Module:
    """A network of Gsunshine/meanflow, which is in JAX, as a network of torch.

    Args:
        size: Its name there, such as DiT_B_4.
        input_size: Side of a sample.
        in_channels: Channels of a sample.
        num_classes: Number of classes, without the null label.
        **changes: Further arguments of `DiT`, in place of those of `size`.

    Returns:
        The network.

    Raises:
        InputError: If there is no such size.
    """
    names = [f"DiT_{letter}_{patch}" for letter in _DIT_SIZES for patch in _PATCHES]
    if size not in names:
        raise did_you_mean("size", size, names)
    _, letter, patch = size.split("_")
    width, depth, heads = _DIT_SIZES[letter]
    shape = {"channels": in_channels, "size": input_size, "patch": int(patch), "num_classes": num_classes}
    return MeanFlowDiT(**shape | {"width": width, "depth": depth, "heads": heads} | changes)


def sine_positions(side: int, width: int) -> Tensor:
    """DiT's position embedding [1, side^2, width] of a square: first half by column, second half by row.

    Args:
        side: Number of rows and of columns.
        width: Coordinates of an embedding, a multiple of 4.

    Returns:
        Sines and cosines of the position times 10000^(-4 k / width), in float64.
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    columns, rows = line[None].expand(side, -1, -1), line[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=2).reshape(1, side**2, width)
