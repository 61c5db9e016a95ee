"""One velocity field in every convention of other projects: the slow, obvious twin of a card adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SHAPE", "AverageVelocity", "CallConvention", "ForeignNetwork"]

SHAPE = (2, 3, 2)
CLASSES = 3


class AverageVelocity(nn.Module):
    """u(x, r, t, y) in mfdiag's convention, smooth in all inputs; label CLASSES is the null label."""

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
class CallConvention:
    """How a network of another project is called, and what it returns."""

    arguments: list[Any]
    keywords: dict[str, Any]
    direction: str
    time_scale: float
    layout: str
    prediction: str
    part: int | str | None
    average: bool
    labels: str


class ForeignNetwork(nn.Module):
    """`field` in the convention `call`, on the linear path; it converts each argument back to mfdiag's convention."""

    def __init__(self, call: CallConvention, field: AverageVelocity) -> None:
        super().__init__()
        self.call, self.field = call, field

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        call: CallConvention = self.call
        values: dict[str, Tensor] = {}
        _collect(call.arguments, arguments, values)
        _collect(list(call.keywords.values()), list(keywords.values()), values)
        assert list(keywords) == list(call.keywords)
        x = values["x"].movedim(-1, 1) if call.layout == "NHWC" else values["x"]
        t = values["t"] / call.time_scale
        if "h" in values:
            h = values["h"] / call.time_scale
            r = t + h if call.direction == "D1" else t - h
        else:
            r = values["r"] / call.time_scale if "r" in values else t
        if call.prediction == "denoised":  # levels sigma = t / (1 - t), and x divided by 1 - t
            r, t = (level / (1 + level) for level in (r, t))
            x = x * self._column(1 - t)
        if call.direction == "D1":
            r, t = 1 - r, 1 - t
        u = self.field(x, r, t, self._labels(values.get("y")))
        x0, x1 = x - self._column(t) * u, x + self._column(1 - t) * u
        prediction = {
            "u": -u if call.direction == "D1" else u,
            "x": x0,
            "eps": x1,
            "v": self._column(1 - t) * x1 - self._column(t) * x0,
            "denoised": x0,
        }[call.prediction]
        if call.layout == "NHWC":
            prediction = prediction.movedim(1, -1)
        if call.part is None:
            return prediction
        others = {
            0: lambda: (prediction, None),
            1: lambda: (None, prediction),
            "out": lambda: {"extra": None, "out": prediction},
        }
        return others[call.part]()

    def _labels(self, y: Tensor | None) -> Tensor | None:
        if y is None or self.call.labels == "index":
            return y
        assert y.shape[1] == CLASSES
        return torch.where(y.sum(1) == 0, CLASSES, y.argmax(1))

    @staticmethod
    def _column(time: Tensor) -> Tensor:
        return time.view(-1, 1, 1, 1)


def _collect(words: list[Any], arguments: Any, values: dict[str, Tensor]) -> None:
    """Fill `values` with the tensor of each word, from nested arguments."""
    assert len(words) == len(arguments)
    for word, argument in zip(words, arguments, strict=True):
        if isinstance(word, list):
            assert isinstance(argument, tuple)
            _collect(word, argument, values)
        elif isinstance(word, dict):
            _collect(list(word.values()), [argument[name] for name in word], values)
        elif word == "none":
            assert argument is None
        elif isinstance(word, str):
            values[word] = argument
        else:
            assert argument == word
