"""Training one model: draws, steps, a state that survives being killed, and the final checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mfdiag.errors import InputError, MfdiagError
from mfdiag.flow.datasets import Data, load_data
from mfdiag.flow.seeds import normals, uniforms
from mfdiag.flow.times import parse_times
from mfdiag.models.checkpoint import save_checkpoint
from mfdiag.models.containers import container_of, read_torch
from mfdiag.models.description import Description
from mfdiag.models.registry import build_model
from mfdiag.storage import replacing
from mfdiag.training.loss import Batch, State, start, update
from mfdiag.training.spec import TrainSpec

__all__ = ["CHECKPOINT", "STATE", "Draws", "LogEntry", "TrainResult", "initial_module", "train"]

CHECKPOINT = "model.safetensors"
STATE = "state.pt"
_BUFFER_STEPS = 200
_BUFFER_NUMBERS = 2**23  # of float64: caps the buffer's memory where samples are large


class LogEntry(NamedTuple):
    """Loss and gradient norm at the step that made `step` steps complete."""

    step: int
    loss: float
    grad_norm: float


@dataclass(frozen=True)
class TrainResult:
    """The checkpoint written and the log of the whole run, earlier parts of a resumed run included."""

    checkpoint: Path
    log: list[LogEntry]


class Draws:
    """Batches by step number: element j of step s is sample s * batch_size + j of the streams `train/*`."""

    def __init__(self, spec: TrainSpec, data: Data) -> None:
        self.spec, self.data, self.times = spec, data, parse_times(spec.times)
        self.dim = int(np.prod(data.shape))
        self.steps = max(1, min(_BUFFER_STEPS, _BUFFER_NUMBERS // (spec.batch_size * self.dim)))
        self._block = -1
        self._drawn: Batch | None = None

    def batch(self, step: int) -> Batch:
        """The batch of step `step`, counted from 0, in torch's default dtype."""
        block, place = divmod(step, self.steps)
        if block != self._block or self._drawn is None:
            self._block, self._drawn = block, self._draw(block)
        size = self.spec.batch_size
        rows = slice(place * size, (place + 1) * size)
        return Batch._make(values if values is None else values[rows] for values in self._drawn)

    def _draw(self, block: int) -> Batch:
        count = self.steps * self.spec.batch_size
        index = np.arange(block * count, (block + 1) * count)
        x0, labels = self.data.sample(self._uniforms("data", index, self.data.width))
        x1 = normals(self.spec.seed, "train/noise", index, self.dim).reshape(x0.shape)
        r, t = self.times.sample(self._uniforms("times", index, self.times.width), index)
        time = t.reshape(-1, *[1] * (x0.ndim - 1))
        anchor = self.spec.loss.anchor
        delta = np.minimum(anchor.delta_max * self._uniforms("anchor", index, 1)[:, 0], t) if anchor else None
        return Batch(
            _tensor((1 - time) * x0 + time * x1),
            _tensor(x1 - x0),
            _tensor(r),
            _tensor(t),
            None if delta is None else _tensor(delta),
            None if labels is None else torch.as_tensor(labels),
        )

    def _uniforms(self, purpose: str, index: np.ndarray, width: int) -> np.ndarray:
        return uniforms(self.spec.seed, f"train/{purpose}", index, width)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=torch.get_default_dtype())


def initial_module(spec: TrainSpec) -> nn.Module:
    """The network before training; its weights depend on the specification's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        return build_model(spec.model.name, spec.model.arguments)


def train(
    spec: TrainSpec, out: Path, *, progress: Callable[[int, float], None] | None = None, resume: bool = True
) -> TrainResult:
    """Train the model of `spec` and write `out/model.safetensors` (raw and EMA weights).

    The state is saved to `out/state.pt` every `spec.save_every` steps and on Ctrl-C; with `resume` a run
    goes on from there and ends with the weights of an uninterrupted one. `progress` gets (steps done, loss) as logged.

    Raises InputError if model and data do not fit or `out` holds another specification's state, MfdiagError if the
    loss stops being finite.
    """
    module = initial_module(spec)
    data = load_data(spec.data)
    draws = Draws(spec, data)
    _check_fit(module, data, spec)
    kept = out / STATE
    state, log = _read_state(kept, spec) if resume and kept.exists() else (start(module), [])
    try:
        while state.step < spec.steps:
            state, loss, norm = update(module, state, draws.batch(state.step), spec)
            if state.step % spec.log_every == 0 or state.step == spec.steps:
                log.append(LogEntry(state.step, loss.item(), norm.item()))
                if progress:
                    progress(state.step, log[-1].loss)
            if state.step % spec.save_every == 0 or state.step == spec.steps:
                _check_finite(state, out)
                _write_state(kept, spec, state, log)
    except KeyboardInterrupt:
        _write_state(kept, spec, state, log)
        saved = f"{state.step:,} steps are saved in {out}, the same command goes on from there"
        raise KeyboardInterrupt(saved) from None
    module.load_state_dict(state.params, strict=False)
    description = Description(
        architecture=spec.model,
        times=spec.times,
        data=spec.data,
        step=state.step,
        ema_decay=spec.ema_decay,
        seed=spec.seed,
        specification=_plain(spec),
    )
    save_checkpoint(out / CHECKPOINT, module, module.state_dict() | state.ema, description)
    return TrainResult(out / CHECKPOINT, log)


def _plain(spec: TrainSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", by_alias=True)


def _check_fit(module: nn.Module, data: Data, spec: TrainSpec) -> None:
    x, time = torch.zeros(2, *data.shape), torch.ones(2)
    try:
        with torch.no_grad():
            got = str(list(module(x, time, time).shape[1:]))
    except (RuntimeError, ValueError) as error:
        got = str(error).split("\n")[0]
    if got != str(list(data.shape)):
        raise InputError(
            f"Expected model {spec.model.name!r} to map samples of {spec.data!r}, shape {list(data.shape)}, to the "
            f"same shape, but got {got}; correct model.arguments."
        )
    classes = spec.model.arguments.get("num_classes", 0)
    if classes not in (0, data.num_classes):
        raise InputError(
            f"Expected model.arguments.num_classes to be 0 or the {data.num_classes} classes of {spec.data!r}, "
            f"but got {classes}; correct it."
        )


def _check_finite(state: State, out: Path) -> None:
    if not all(bool(p.isfinite().all()) for p in state.params.values()):
        raise MfdiagError(
            f"Training in {out} diverged: weights are not finite after step {state.step}; lower the learning rate, "
            "or weigh samples adaptively."
        )


def _write_state(path: Path, spec: TrainSpec, state: State, log: list[LogEntry]) -> None:
    content = {"specification": _plain(spec), "state": state._asdict(), "log": [tuple(entry) for entry in log]}
    with replacing(path) as temporary:
        torch.save(content, temporary)


def _read_state(path: Path, spec: TrainSpec) -> tuple[State, list[LogEntry]]:
    kept = read_torch(path, container_of(path), load=True).tree
    if kept.get("specification") != _plain(spec):
        raise InputError(
            f"Expected {path} to come from the same specification, but it differs; choose another folder, "
            "or train without resuming to begin again."
        )
    return State(**kept["state"]), [LogEntry(*entry) for entry in kept["log"]]
