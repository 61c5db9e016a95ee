"""Training samples: batches by step number, for one model or for many, drawn ahead of time in the background."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from mfdiag.errors import InputError
from mfdiag.estimators import find_estimator
from mfdiag.flow.couplings import parse_coupling
from mfdiag.flow.data.datasets import Data
from mfdiag.flow.draw import Draws, why_posterior_unknown
from mfdiag.flow.paths import parse_path
from mfdiag.flow.sources import parse_source
from mfdiag.flow.times import parse_times
from mfdiag.models.teacher import teacher_velocity
from mfdiag.training.loss import TrainBatch
from mfdiag.training.spec import TrainSpec
from mfdiag.usercode import is_user_code

__all__ = ["BatchFeed", "BatchStream", "SamplingKey"]

_BLOCK_STEPS = 200  # steps drawn at once: few calls, and blocks that are ready soon
_BLOCK_NUMBERS = 2**23  # numbers of float64 in a block, at most: 64 MiB where samples are large


class SamplingKey(NamedTuple):
    """Everything that determines a model's samples: models with equal keys share their batches."""

    data: str
    times: str
    source: str
    coupling: str
    path: str
    seed: int
    anchor_range: tuple[float, float] | None
    uniform: bool = False
    exact: bool = False

    @classmethod
    def of(cls, spec: TrainSpec) -> SamplingKey:
        """The key of a specification."""
        anchor = spec.loss.anchor
        anchor_range = (anchor.delta_min, anchor.delta_max) if anchor else None
        uniform = spec.loss.estimator is not None and find_estimator(spec.loss.estimator).needs.uniform
        exact = spec.loss.proxy == "exact"
        return cls(
            spec.data, spec.times, spec.source, spec.coupling, spec.path, spec.seed, anchor_range, uniform, exact
        )

    def draws(self, data: Data) -> Draws:
        """The draws of the key, with training's own random streams; InputError if an argument does not fit the data."""
        source = parse_source(self.source, data)
        coupling = parse_coupling(self.coupling, data, source, lambda file: teacher_velocity(file, data=data))
        if self.exact and (reason := why_posterior_unknown(data, source, coupling, data.num_classes > 0)):
            raise InputError(f"Expected data with an exact posterior for proxy: exact, but {reason}. Use proxy: ema.")
        return Draws(
            data,
            parse_times(self.times),
            self.seed,
            exact_posterior=self.exact,
            source=source,
            coupling=coupling,
            path=parse_path(self.path),
            stream_prefix="train/",
        )


class BatchStream:
    """Batches by step number: element j of step s is sample s * batch_size + j of the streams `train/*`."""

    def __init__(self, key: SamplingKey, data: Data, batch_size: int) -> None:
        self.draws, self.anchor_range, self.batch_size = key.draws(data), key.anchor_range, batch_size
        self.uniform = key.uniform
        width = batch_size * int(np.prod(data.shape))
        self.block_steps = max(1, min(_BLOCK_STEPS, _BLOCK_NUMBERS // width))

    def block(self, number: int) -> TrainBatch:
        """The samples of `block_steps` steps, starting at step `number * block_steps`, in torch's default dtype."""
        count = self.block_steps * self.batch_size
        index = np.arange(number * count, (number + 1) * count)
        drawn = self.draws.batch(index)
        delta = None
        if self.anchor_range is not None:
            low, high = self.anchor_range
            u = torch.as_tensor(self.draws.uniforms("anchor", index, 1)[:, 0])
            delta = torch.minimum(low + (high - low) * u, drawn.t)
        uniform = torch.as_tensor(self.draws.uniforms("split", index, 1)[:, 0]) if self.uniform else None
        posterior = self.draws.velocity_posterior(drawn)
        vhat = None if posterior is None else posterior.mean
        batch = TrainBatch(
            drawn.x_t, drawn.velocity, drawn.r, drawn.t, delta, drawn.labels, drawn.weight, uniform, vhat
        )
        dtype = torch.get_default_dtype()
        return TrainBatch._make(v if v is None or not v.is_floating_point() else v.to(dtype) for v in batch)


class BatchFeed:
    """Batches of many models, [models, n, ...], by step; the next blocks are drawn in the background on all cores.

    Models with equal keys get the same samples, which are drawn once.

    Args:
        specs: One specification for each model, all with the same batch size.
        data: The data set of each model.
        device: Where the batches should be.
    """

    def __init__(self, specs: Sequence[TrainSpec], data: Sequence[Data], device: str) -> None:
        self._size, self._device = specs[0].batch_size, device
        data_of = {SamplingKey.of(spec): values for spec, values in zip(specs, data, strict=True)}
        self._streams = [BatchStream(key, values, self._size) for key, values in data_of.items()]
        keys = list(data_of)
        self._stream_of_model = torch.tensor([keys.index(SamplingKey.of(spec)) for spec in specs], device=device)
        self.block_steps = self._streams[0].block_steps
        cores = os.cpu_count() or 1
        self._blocks_ahead = -(-cores // len(self._streams))
        if any(is_user_code(key.path) for key in keys):
            # forward-mode derivatives of a user's path cannot run in parallel with those of training
            cores, self._blocks_ahead = 1, 0
        self._pool = ThreadPoolExecutor(cores)
        self._ahead: dict[int, list[Future[TrainBatch]]] = {}
        self._number = -1
        self._block = TrainBatch(*[torch.empty(0)] * 4)

    def batch(self, step: int) -> TrainBatch:
        """The batch of a step, counted from 0."""
        number, step_in_block = divmod(step, self.block_steps)
        if number != self._number:
            self._load(number)
        rows = slice(step_in_block * self._size, (step_in_block + 1) * self._size)
        return TrainBatch._make(
            None if values is None else values[:, rows][self._stream_of_model] for values in self._block
        )

    def close(self) -> None:
        """Stop drawing ahead."""
        self._pool.shutdown(cancel_futures=True)

    def _load(self, number: int) -> None:
        for ahead in range(number, number + self._blocks_ahead + 1):
            self._submit(ahead)
        parts = [future.result() for future in self._ahead.pop(number)]
        self._block = TrainBatch._make(
            None if column[0] is None else torch.stack(column).to(self._device) for column in zip(*parts, strict=True)
        )
        self._number = number

    def _submit(self, number: int) -> None:
        if number not in self._ahead:
            self._ahead[number] = [self._pool.submit(stream.block, number) for stream in self._streams]
