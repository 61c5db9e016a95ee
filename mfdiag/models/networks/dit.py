"""A small diffusion transformer (DiT, Peebles and Xie, arXiv 2212.09748) conditioned on t and t - r, as in MeanFlow."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.models.networks.mlp import label_embedding, labels_or_null

__all__ = ["Attention", "DiT", "TimeEmbedding"]

_FREQUENCIES = 128  # with the next line, the sinusoidal features of DiT
_LONGEST_PERIOD = 10_000.0
_INITIAL_STD = 0.02  # of embeddings, modulations and the last layer, as is usual for transformers


class TimeEmbedding(nn.Module):
    """Sinusoidal features of `scale` times a time [n], then two linear layers: [n, width]."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.layers = nn.Sequential(nn.Linear(2 * _FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        steps = torch.arange(_FREQUENCIES, dtype=time.dtype, device=time.device) / _FREQUENCIES
        angle = self.scale * time[:, None] * torch.exp(-math.log(_LONGEST_PERIOD) * steps)
        return self.layers(torch.cat([angle.cos(), angle.sin()], dim=1))


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class Attention(nn.Module):
    """Self-attention of `heads` heads over tokens [n, tokens, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width))


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        inner = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attention(_modulate(self.norm1(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(_modulate(self.norm2(x), shift2, scale2))


class DiT(nn.Module):
    """Average velocity u(x, r, t) of images [channels, size, size], cut into (size / patch)^2 tokens.

    The defaults give 16 tokens and 4.2 million parameters. Times are multiplied by `time_scale` before their sinusoidal
    features: 1 keeps the derivative in t small, 1000 is the usual choice of diffusion models. The modulation and the
    last layer start from a normal distribution of standard deviation 0.02. DiT starts them at zero, where nearly every
    gradient of a new network vanishes. Forward-mode derivatives need the MATH backend of attention. With
    `num_classes` = 0, labels are ignored.

    Raises:
        InputError: If a size is below 1, `patch` does not divide `size`, or `heads` does not divide `width`.
    """

    # 9 parameters: they are the fields of `architecture.arguments` in specifications and checkpoints
    def __init__(
        self,
        channels: int = 4,
        size: int = 8,
        patch: int = 2,
        width: int = 192,
        depth: int = 6,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        num_classes: int = 0,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if min(channels, size, patch, width, depth, heads) < 1 or size % patch or width % heads:
            raise InputError(
                f"DiT needs positive sizes, a patch that divides size and heads that divide width, but got "
                f"channels={channels}, "
                f"size={size}, patch={patch}, width={width}, depth={depth}, heads={heads}; "
                "correct the model's arguments."
            )
        self.patch = patch
        self.embed = nn.Linear(channels * patch**2, width)
        self.pos_embed = nn.Parameter(torch.empty(1, (size // patch) ** 2, width))
        self.time = TimeEmbedding(width, time_scale)
        self.interval = TimeEmbedding(width, time_scale)
        self.num_classes = num_classes
        self.label = label_embedding(num_classes, width)
        self.blocks = nn.ModuleList(_TransformerBlock(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.head = nn.Linear(width, channels * patch**2)
        self._initialize()

    def _initialize(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
                if name.endswith("head") or "modulation" in name:
                    nn.init.normal_(module.weight, std=_INITIAL_STD)
                if "modulation" in name:
                    nn.init.normal_(module.bias, std=_INITIAL_STD)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=_INITIAL_STD)
        nn.init.normal_(self.pos_embed, std=_INITIAL_STD)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Average velocity u.

        Args:
            x: Points x_t [n, channels, size, size].
            r: Times r [n] in [0, 1], the other end of the interval.
            t: Times t [n] in [0, 1] of the points.
            y: Labels int64 [n]; None stands for the null label.

        Returns:
            u, shaped as x.
        """
        condition = self._add_label(self.time(t) + self.interval(t - r), x, y)
        tokens = self._tokens(x)
        for block in self.blocks:
            tokens = block(tokens, condition)
        return self._image(tokens, condition, self.modulation, self.head, x)

    def _add_label(self, condition: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        return condition if self.label is None else condition + self.label(labels_or_null(y, self.label, x))

    def _tokens(self, x: Tensor) -> Tensor:
        n, channels, size, _ = x.shape
        side = size // self.patch
        patches = self._to_patches(x.reshape(n, channels, side, self.patch, side, self.patch))
        return self.embed(patches.reshape(n, side**2, -1)) + self.pos_embed

    def _image(self, tokens: Tensor, condition: Tensor, modulation: nn.Module, head: nn.Module, like: Tensor) -> Tensor:
        n, channels, size, _ = like.shape
        side = size // self.patch
        tokens = head(_modulate(self.norm(tokens), *modulation(condition).chunk(2, dim=1)))
        return self._from_patches(tokens, side, channels).reshape(n, channels, size, size)

    def _to_patches(self, x: Tensor) -> Tensor:
        """From [n, channels, side, patch, side, patch] to the order of coordinates in a token."""
        return x.permute(0, 2, 4, 1, 3, 5)

    def _from_patches(self, tokens: Tensor, side: int, channels: int) -> Tensor:
        """The inverse: tokens [n, side^2, coordinates] to [n, channels, side, patch, side, patch]."""
        patches = tokens.reshape(tokens.shape[0], side, side, channels, self.patch, self.patch)
        return patches.permute(0, 3, 1, 4, 2, 5)
