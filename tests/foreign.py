"""One velocity field in every convention of other projects: an obvious twin of what a model card undoes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SHAPE", "Field", "Foreign", "Way"]

SHAPE = (2, 3, 2)
CLASSES = 3


class Field(nn.Module):
    """u(x, r, t, y) in this project's convention, smooth in everything; the null label has the index CLASSES."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(14, 8)
        self.label = nn.Embedding(CLASSES + 1, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.leave = nn.Linear(8, 12)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        if y is None:
            y = torch.full(x.shape[:1], CLASSES)
        hidden = self.enter(torch.cat([x.flatten(1), r[:, None], (t - r)[:, None]], 1)) + self.label(y)
        return self.leave(self.scale * hidden.tanh()).view(x.shape)


@dataclass(frozen=True)
class Way:
    """How a foreign network is called, and what it returns."""

    arguments: list[Any]
    keywords: dict[str, Any]
    direction: str
    time_scale: float
    layout: str
    prediction: str
    part: int | str | None
    average: bool
    labels: str


class Foreign(nn.Module):
    """`field` in the convention `way`, on the linear path; it undoes word by word what it is handed."""

    def __init__(self, way: Way, field: Field) -> None:
        super().__init__()
        self.way, self.field = way, field

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        way, told = self.way, {}
        _collect(way.arguments, arguments, told)
        _collect(list(way.keywords.values()), list(keywords.values()), told)
        assert list(keywords) == list(way.keywords)
        x = told["x"].movedim(-1, 1) if way.layout == "NHWC" else told["x"]
        t = told["t"] / way.time_scale
        if "h" in told:
            h = told["h"] / way.time_scale
            r = t + h if way.direction == "D1" else t - h
        else:
            r = told["r"] / way.time_scale if "r" in told else t
        if way.prediction == "denoised":  # levels sigma = t / (1 - t), and x divided by 1 - t
            r, t = (level / (1 + level) for level in (r, t))
            x = x * self._column(1 - t)
        if way.direction == "D1":
            r, t = 1 - r, 1 - t
        u = self.field(x, r, t, self._labels(told.get("y")))
        x0, x1 = x - self._column(t) * u, x + self._column(1 - t) * u
        found = {
            "u": -u if way.direction == "D1" else u,
            "x": x0,
            "eps": x1,
            "v": self._column(1 - t) * x1 - self._column(t) * x0,
            "denoised": x0,
        }[way.prediction]
        if way.layout == "NHWC":
            found = found.movedim(1, -1)
        if way.part is None:
            return found
        others = {0: lambda: (found, None), 1: lambda: (None, found), "out": lambda: {"extra": None, "out": found}}
        return others[way.part]()

    def _labels(self, y: Tensor | None) -> Tensor | None:
        if y is None or self.way.labels == "index":
            return y
        assert y.shape[1] == CLASSES
        return torch.where(y.sum(1) == 0, CLASSES, y.argmax(1))

    @staticmethod
    def _column(time: Tensor) -> Tensor:
        return time.view(-1, 1, 1, 1)


def _collect(words: list[Any], values: Any, told: dict[str, Tensor]) -> None:
    """The values by word, out of nested packs."""
    assert len(words) == len(values)
    for word, value in zip(words, values, strict=True):
        if isinstance(word, list):
            assert isinstance(value, tuple)
            _collect(word, value, told)
        elif isinstance(word, dict):
            _collect(list(word.values()), [value[name] for name in word], told)
        elif word == "none":
            assert value is None
        elif isinstance(word, str):
            told[word] = value
        else:
            assert value == word
