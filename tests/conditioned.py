"""Networks that are conditioned on arrays beside the samples, and their data, as users of such networks write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["CASES", "Case", "Policy", "SpectrogramNetwork", "TextNetwork", "arrays_of"]


class Policy(nn.Module):
    """A policy: a small U-Net over actions [n, steps, d], and an encoder of observations that is trained with it."""

    def __init__(self, d: int = 2, seen: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(seen, 6), nn.SiLU(), nn.Linear(6, 4))
        self.time = nn.Linear(2, 6)
        self.down = nn.Conv1d(d, 6, 3, stride=2, padding=1)
        self.film = nn.Linear(14, 6)
        self.up = nn.ConvTranspose1d(6, 6, 2, stride=2)
        self.out = nn.Conv1d(6 + d, d, 3, padding=1)

    def unet(self, sample: Tensor, t: Tensor, r: Tensor, global_cond: Tensor) -> Tensor:
        """u [n, steps, d] from encoded observations [n, 8]."""
        x = sample.movedim(1, 2)
        h = torch.tanh(self.down(x))
        scale = self.film(torch.cat([self.time(torch.stack([t, r], 1)), global_cond], 1))
        h = self.up(h * (1 + scale[:, :, None]))
        return self.out(torch.cat([torch.tanh(h), x], 1)).movedim(1, 2)

    def forward(self, sample: Tensor, t: Tensor, r: Tensor, obs: Tensor) -> Tensor:
        """u [n, steps, d] from two steps of observations [n, 2, seen]."""
        return self.unet(sample, t, r, self.encoder(obs).flatten(1))


class TextNetwork(nn.Module):
    """A sequence network [n, length, d] that attends to tokens [n, words], of which a mask says which are there."""

    def __init__(self, d: int = 2, vocabulary: int = 7) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 8)
        self.inside = nn.Linear(d + 2, 8)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, d)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """u [n, length, d]."""
        times = torch.stack([r, t], 1)[:, None].expand(-1, x.shape[1], -1)
        h = torch.tanh(self.inside(torch.cat([x, times], 2)))
        words = self.embedding(text)
        scores = self.query(h) @ self.key(words).transpose(1, 2) / 8**0.5
        scores = scores.masked_fill(~mask[:, None], -1e4)
        return self.out(h + scores.softmax(2) @ self.value(words))


class SpectrogramNetwork(nn.Module):
    """A convolutional network over waveforms [n, 1, 8], conditioned on spectrograms [n, bands, 4]."""

    def __init__(self, bands: int = 3) -> None:
        super().__init__()
        self.encode = nn.Conv1d(bands, 4, 3, padding=1)
        self.times = nn.Linear(2, 4)
        self.inside = nn.Conv1d(1, 4, 3, padding=1)
        self.out = nn.Conv1d(4, 1, 3, padding=1)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, *, spectrogram: Tensor) -> Tensor:
        """u [n, 1, 8]."""
        condition = self.encode(spectrogram).repeat_interleave(2, 2) + self.times(torch.stack([r, t], 1))[:, :, None]
        return self.out(torch.tanh(self.inside(x) + condition))


class Case(NamedTuple):
    """A network, the shape of its samples, and what makes n rows of its conditions."""

    network: type[nn.Module]
    shape: tuple[int, ...]
    conditions: Callable[[np.random.Generator, int], dict[str, np.ndarray]]


def _text(generator: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    lengths = generator.integers(1, 6, n)
    return {"text": generator.integers(0, 7, (n, 5)), "mask": np.arange(5) < lengths[:, None]}


CASES = {
    "policy": Case(Policy, (4, 2), lambda g, n: {"obs": g.normal(size=(n, 2, 3))}),
    "text": Case(TextNetwork, (3, 2), _text),
    "spectrogram": Case(SpectrogramNetwork, (1, 8), lambda g, n: {"spectrogram": g.normal(size=(n, 3, 4))}),
}


def arrays_of(case: str, n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Samples named x, and the conditions of a case beside them."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, *CASES[case].shape))
    return {"x": x, **CASES[case].conditions(generator, n)}
