"""Networks u(x, r, t, y) that between them use every rule of the fast engine, and many uses that no rule expects."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mfdiag.flow.paths import TRIGONOMETRIC, Path
from mfdiag.models.networks.decoupled import DecoupledDiT
from mfdiag.models.networks.dit import DiT
from mfdiag.models.networks.mlp import MLP
from mfdiag.models.networks.unet import UNet, UNet1d
from mfdiag.models.prediction import PredictionAdapter

CLASSES = 3
_SQUARED = Path("squared", lambda t: 1 - t**2, lambda t: t**2 + 0.1 * t * (1 - t))  # its slopes by forward mode


class Network(NamedTuple):
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    ruled: bool = True  # every parameter has a fast path


class Timed(nn.Module):
    """u = body(x (1 + t) + r)."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def enter(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        column = (-1, *[1] * (x.ndim - 1))
        return x * (1 + t.view(column)) + r.view(column)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.body(self.enter(x, r, t))


class Tied(Timed):
    """An embedding of labels whose table is also the head's weight."""

    def __init__(self, **embedding: float) -> None:
        super().__init__(nn.Linear(4, 6), nn.SiLU())
        self.label = nn.Embedding(4, 6, **embedding)  # type: ignore[arg-type]
        self.head = nn.Linear(6, 4)
        self.head.weight = self.label.weight

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        assert y is not None
        return self.head(super().forward(x, r, t) + self.label(y))


class Labelled(Timed):
    """An embedding of labels on its own."""

    def __init__(self, **embedding: float) -> None:
        super().__init__(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 4))
        self.label = nn.Embedding(CLASSES, 4, **embedding)  # type: ignore[arg-type]

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        assert y is not None
        return super().forward(x + self.label(y), r, t)


class Bare(Timed):
    """Parameters outside layers: per entry, with a leading one, with further axes, one number alone."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4), nn.SiLU())
        self.scale = nn.Parameter(torch.ones(4))
        self.position = nn.Parameter(torch.zeros(1, 5, 4))
        self.offset = nn.Parameter(torch.zeros(5, 4))
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.gain * super().forward(self.scale * x + self.position, r, t) + self.offset * x


class Bilinear(Timed):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 5), nn.SiLU())
        self.product = nn.Bilinear(5, 4, 4)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.product(super().forward(x, r, t), x)


class Turned(Timed):
    """Layers between axes turned around: tokens first, or tokens folded into the batch."""

    def __init__(self, folded: bool) -> None:
        super().__init__(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 4))
        self.folded = folded

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.enter(x, r, t)
        return self.body(h.flatten(0, 1)).view_as(x) if self.folded else self.body(h.transpose(0, 1)).transpose(0, 1)


class Unusual(Timed):
    """A layer called by keyword, one that is never called, and one whose weight is made from others."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 6), nn.SiLU(), nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)))
        self.head = nn.Linear(6, 4)
        self.idle = nn.Linear(2, 2)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.head(input=super().forward(x, r, t))


class Attention(Timed):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 6))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        h = super().forward(x, r, t)
        return self.head(h + self.attention(h, h, h, need_weights=False)[0])


class Recurrent(Timed):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 6))
        self.memory = nn.LSTM(2, 3, bidirectional=True, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        h = super().forward(x, r, t)
        return self.head(h + self.memory(h.unflatten(1, (3, 2)))[0][:, 1])


class OwnLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.t()).add_(self.bias)


class OwnConvolution(nn.Module):
    """Of the size of its input; or of an input averaged over so many steps, which no rule expects."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int = 1, averaged: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.groups, self.averaged = groups, averaged

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(x, self.averaged)
        out = nn.functional.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2, groups=self.groups)
        return out + self.bias.view(1, -1, 1, 1)


class OwnNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(1, (self.num_groups, -1))
        mean, variance = parts.flatten(2).mean(2), parts.flatten(2).var(2, unbiased=False)
        normal = (parts - mean[..., None, None, None]) / (variance[..., None, None, None] + self.eps).sqrt()
        return normal.flatten(1, 2) * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


def _own_layers(averaged: int = 1) -> nn.Module:
    return Timed(
        OwnConvolution(4, 8, 3, averaged=averaged),
        nn.Upsample((6, 6)),
        OwnNorm(2, 8),
        nn.SiLU(),
        OwnConvolution(8, 4, 1, groups=2),
        nn.SiLU(),
        OwnLinear(6, 6),
    )


def _convolutional() -> nn.Module:
    return Timed(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4),
        nn.SiLU(),
        nn.Conv2d(8, 12, (3, 2), stride=2, padding=1, groups=2),
        nn.SiLU(),
        nn.Conv2d(12, 4, (2, 3), padding="same", padding_mode="reflect"),
        nn.Upsample((6, 6)),
        nn.Conv2d(4, 4, 1, bias=False),
    )


def _tied_linear() -> nn.Module:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return Timed(first, nn.SiLU(), second)


def _shared() -> nn.Module:
    twice = nn.Linear(4, 4)
    return Timed(twice, nn.SiLU(), twice, nn.Tanh(), nn.Linear(4, 4))


class Insisting(nn.Module):
    """A layer of its own that looks at the shape of its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        assert self.factor.ndim == 2
        return torch.tanh(x @ self.factor / self.factor.norm())


NETWORKS: dict[str, Network] = {
    "mlp": Network(lambda: MLP(3, hidden=8, depth=2), (3,)),
    "mlp_labels": Network(lambda: MLP(3, hidden=8, depth=2, num_classes=CLASSES), (3,)),
    "dit": Network(lambda: DiT(2, size=4, width=8, depth=2, heads=2, num_classes=CLASSES), (2, 4, 4)),
    "decoupled_dit": Network(
        lambda: DecoupledDiT(2, size=4, width=8, depth=3, heads=2, num_classes=CLASSES, decoder_depth=1), (2, 4, 4)
    ),
    "unet": Network(lambda: UNet(2, width=8, num_classes=CLASSES), (2, 5, 4)),
    "unet1d": Network(lambda: UNet1d(2, width=8, heads=1, num_classes=CLASSES), (2, 7)),
    "predicts_x": Network(lambda: PredictionAdapter(MLP(3, hidden=8, depth=2), "x", TRIGONOMETRIC), (3,)),
    "predicts_eps_by_forward_mode": Network(
        lambda: PredictionAdapter(MLP(3, hidden=8, depth=2), "eps", _SQUARED), (3,)
    ),
    "convolutional": Network(_convolutional, (4, 6, 6)),
    "own_layers": Network(_own_layers, (4, 6, 6)),
    "own_layers_unlike_their_looks": Network(lambda: _own_layers(averaged=2), (4, 6, 6)),
    "conv1d": Network(
        lambda: Timed(
            nn.Conv1d(3, 6, 3, padding=1, padding_mode="circular"), nn.SiLU(), nn.Conv1d(6, 3, 3, padding=1, groups=3)
        ),
        (3, 7),
    ),
    "conv3d": Network(
        lambda: Timed(nn.Conv3d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv3d(4, 2, (1, 3, 2), padding="same", groups=2)),
        (2, 4, 3, 4),
    ),
    "norms": Network(
        lambda: Timed(nn.Linear(4, 8), nn.LayerNorm((5, 8)), nn.SiLU(), nn.RMSNorm(8), nn.Linear(8, 4)), (5, 4)
    ),
    "tied_embedding": Network(Tied, (4,)),
    "tied_embedding_with_padding": Network(lambda: Tied(padding_idx=1), (4,)),
    "tied_linear": Network(_tied_linear, (5, 4)),
    "bare": Network(Bare, (5, 4)),
    "in_place": Network(lambda: Timed(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 4)), (4,)),
    "shared": Network(_shared, (4,)),
    "folded_tokens": Network(lambda: Turned(folded=True), (5, 4)),
    "tokens_first": Network(lambda: Turned(folded=False), (5, 4), ruled=False),
    "bilinear": Network(Bilinear, (4,)),
    "renormalised_embedding": Network(lambda: Labelled(scale_grad_by_freq=True), (4,)),
    "unusual": Network(Unusual, (4,)),
    "attention": Network(Attention, (5, 4)),
    "recurrent": Network(Recurrent, (4,)),
    "insisting": Network(lambda: Timed(Insisting(), nn.Linear(4, 4)), (4,)),
}
