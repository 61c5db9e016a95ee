"""What models are trained on: batches by step number, and the batches of many models, drawn ahead of time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfdiag.flow.datasets import Data
from mfdiag.flow.seeds import normals, uniforms
from mfdiag.flow.times import parse_times
from mfdiag.training.loss import Batch
from mfdiag.training.spec import TrainSpec

__all__ = ["Draws", "Feed"]

_BLOCK_STEPS = 200
_BLOCK_NUMBERS = 2**23  # of float64: caps a block's memory where samples are large


class Draws:
    """Batches by step number: element j of step s is sample s * batch_size + j of the streams `train/*`."""

    def __init__(self, spec: TrainSpec, data: Data) -> None:
        self.spec, self.data, self.times = spec, data, parse_times(spec.times)
        self.dim = int(np.prod(data.shape))
        self.block_steps = max(1, min(_BLOCK_STEPS, _BLOCK_NUMBERS // (spec.batch_size * self.dim)))

    def block(self, number: int) -> Batch:
        """The samples of `block_steps` steps from step number * block_steps on, in torch's default dtype."""
        count = self.block_steps * self.spec.batch_size
        index = np.arange(number * count, (number + 1) * count)
        x0, labels = self.data.sample(self._uniforms("data", index, self.data.width))
        x1 = normals(self.spec.seed, "train/noise", index, self.dim).reshape(x0.shape)
        r, t = self.times.sample(self._uniforms("times", index, self.times.width), index)
        time = t.reshape(-1, *[1] * (x0.ndim - 1))
        return Batch(
            _tensor((1 - time) * x0 + time * x1),
            _tensor(x1 - x0),
            _tensor(r),
            _tensor(t),
            self._delta(index, t),
            None if labels is None else torch.as_tensor(labels),
        )

    def _delta(self, index: np.ndarray, t: np.ndarray) -> Tensor | None:
        anchor = self.spec.loss.anchor
        if anchor is None:
            return None
        width = anchor.delta_max - anchor.delta_min
        return _tensor(np.minimum(anchor.delta_min + width * self._uniforms("anchor", index, 1)[:, 0], t))

    def _uniforms(self, purpose: str, index: np.ndarray, width: int) -> np.ndarray:
        return uniforms(self.spec.seed, f"train/{purpose}", index, width)


class _Law(NamedTuple):
    """What decides a model's samples: models that share it share them."""

    data: str
    times: str
    seed: int
    delta: tuple[float, float] | None

    @classmethod
    def of(cls, spec: TrainSpec) -> _Law:
        anchor = spec.loss.anchor
        return cls(spec.data, spec.times, spec.seed, (anchor.delta_min, anchor.delta_max) if anchor else None)


class Feed:
    """Batches of many models, [models, n, ...], by step; the next blocks are drawn in the background, on every core.

    Models with the same data, times and seed get the same samples, which are drawn once.
    """

    def __init__(self, specs: Sequence[TrainSpec], data: Sequence[Data], device: str) -> None:
        laws = {_Law.of(spec): Draws(spec, points) for spec, points in zip(specs, data, strict=True)}
        self._draws = list(laws.values())
        self._which = torch.tensor([list(laws).index(_Law.of(spec)) for spec in specs], device=device)
        self._size, self._device = specs[0].batch_size, device
        self.block_steps = min(draws.block_steps for draws in self._draws)
        for draws in self._draws:
            draws.block_steps = self.block_steps
        cores = os.cpu_count() or 1
        self._blocks_ahead = -(-cores // len(self._draws))
        self._pool = ThreadPoolExecutor(cores)
        self._ahead: dict[int, list[Future[Batch]]] = {}
        self._number = -1
        self._block = Batch(*[torch.empty(0)] * 4)

    def batch(self, step: int) -> Batch:
        """The batch of step `step`, counted from 0."""
        number, place = divmod(step, self.block_steps)
        if number != self._number:
            self._load(number)
        rows = slice(place * self._size, (place + 1) * self._size)
        return Batch._make(None if values is None else values[:, rows][self._which] for values in self._block)

    def close(self) -> None:
        """Stops drawing ahead."""
        self._pool.shutdown(cancel_futures=True)

    def _load(self, number: int) -> None:
        for ahead in range(number, number + self._blocks_ahead + 1):
            self._submit(ahead)
        parts = [future.result() for future in self._ahead.pop(number)]
        self._block = Batch._make(
            None if column[0] is None else torch.stack(column).to(self._device) for column in zip(*parts, strict=True)
        )
        self._number = number

    def _submit(self, number: int) -> None:
        if number not in self._ahead:
            self._ahead[number] = [self._pool.submit(draws.block, number) for draws in self._draws]


def _tensor(values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=torch.get_default_dtype())
