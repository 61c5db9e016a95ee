"""`mfdiag.Monitor`: the doctor's numbers during a training, within a share of its time, without touching it."""

from __future__ import annotations

import copy
import random
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mfdiag.diagnosis.examination import doctor_frame
from mfdiag.diagnosis.field_probe import probe_field
from mfdiag.diagnosis.gradient_probe import probe_gradient
from mfdiag.diagnosis.weight_probe import weight_distances
from mfdiag.errors import InputError, first_line
from mfdiag.estimators import find_estimator
from mfdiag.measures.run.api import MeasureOptions, prepare_subject
from mfdiag.measures.run.measurement import Measurement
from mfdiag.measures.run.request import Request
from mfdiag.measures.run.subject import Subject
from mfdiag.models.factory import freeze_as_buffers, has_frozen_parameters, without_parallelism
from mfdiag.models.open_calls import calls_closed
from mfdiag.storage import atomic_write
from mfdiag.tables.store import write_table

__all__ = ["Monitor"]

_FIRST_SAMPLES = 64  # each measurement takes twice as many, up to the most
_BATCH = 256  # samples per step, where `batch_sizes` does not say
_GUESS = 1.0  # seconds of the first measurement
_SAMPLES, _MOST = 512, 1024  # of a measurement: by default, and at most
_POSTERIOR = 1e8  # samples x data points x coordinates: less than a second
_HISTORY, _SETTLED = 200, 50  # losses that a spike is compared with, and the fewest of them
_SPIKE = 8.0  # robust standard deviations of the loss's logarithm
_SPIKES = 3  # that are stored; the largest stay
_LOGGED = (
    "velocity_error",
    "interval_defect",
    "variance",
    "tail_index",
    "noise_scale",
    "tangent_optimum",
    "critical_batch",
)


class Monitor:
    """Measures a network during its training.

    It measures a copy, restores every random generator, and never writes to the network: weights are bit-identical with
    and without it. It takes at most `budget` of the training's time: it waits until the next measurement fits, so the
    first one comes after about a minute. Under torch.distributed the first process alone measures.

    Args:
        model: The network, forward(x, r, t, labels) -> u; also within DistributedDataParallel or torch.compile.
        data: The data it is trained on, as `mfdiag.measure` takes them.
        out: Folder of the table `doctor` and of stored spikes.
        every: Steps between measurements at least; None for as often as the budget allows.
        budget: Largest fraction of the training's time.
        ema: The averaged network.
        writer: Receives the main numbers: an object with `add_scalar(name, value, step)`, such as TensorBoard's
            SummaryWriter, or with `log(values, step=step)`, such as a run of W&B.
        say: Receives one-line notes; None warns.
        **options: As for `mfdiag.measure`: `samples` at most, `batch_sizes` (that of a step), `times`, `path`, ...

    Raises:
        InputError: The network cannot be measured on these data.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        *,
        out: str | Path = "mfdiag-monitor",
        every: int | None = None,
        budget: float = 0.02,
        ema: nn.Module | None = None,
        writer: Any = None,
        say: Callable[[str], None] | None = None,
        **options: Unpack[MeasureOptions],
    ) -> None:
        if not 0 < budget < 1:
            raise InputError(f"Expected a budget above 0 and below 1, a fraction of the training's time, got {budget}.")
        self.out, self.every, self.budget = Path(out), every or 1, budget
        self.batch_size = options.get("batch_sizes", (_BATCH,))[0]
        self.writer, self.frame, self.spikes = writer, pd.DataFrame(), list[Path]()
        self._say = say or (lambda note: warnings.warn(note, stacklevel=3))
        self._most = min(options.get("samples", _SAMPLES), _MOST)
        self._models = {"raw": without_parallelism(model)} | ({} if ema is None else {"ema": without_parallelism(ema)})
        self._active = not _another_process()
        self._losses: deque[float] = deque(maxlen=_HISTORY)
        self._sizes: dict[Path, float] = {}
        self._start, self._spent = time.perf_counter(), 0.0
        self._expected, self._next_samples = _GUESS, min(_FIRST_SAMPLES, self._most)
        self._last: int | None = None
        if self._active:
            with self._apart():
                self._copies = {name: _copied(network) for name, network in self._models.items()}
                self._subject, self._request = self._prepare(data, MeasureOptions(**options))
        self._spent = time.perf_counter() - self._start

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._last is not None and isinstance(error, Exception):
            self._store(self._last, float("nan"), None)
        self.close()

    def step(self, step: int, loss: float | Tensor | None = None, batch: Mapping[str, Tensor] | None = None) -> bool:
        """Call this after each optimizer step.

        Args:
            step: Number of steps taken.
            loss: The training loss. It is read only to find spikes.
            batch: Tensors to store beside a spike, such as x0, x1, r and t.

        Returns:
            Whether it measured.
        """
        if not self._active:
            return False
        if loss is not None:
            self.look_at(step, float(loss.detach() if isinstance(loss, Tensor) else loss), batch)
        due = self._last is None or step >= self._last + self.every
        if not due or not self._affordable():
            return False
        self._last = step
        before = time.perf_counter()
        with self._apart():
            try:
                self._measure(step)
            except Exception as error:  # whatever happens, the training goes on
                self._active = False
                self._say(f"The monitor stops at step {step:,}: {first_line(error)}")
        took = time.perf_counter() - before
        self._spent += took
        larger = min(2 * self._next_samples, self._most)
        self._expected, self._next_samples = took * larger / self._next_samples, larger
        return True

    def look_at(self, step: int, loss: float, batch: Mapping[str, Tensor] | None = None) -> None:
        """Compare a loss with the latest ones, and store the step if it is a spike. `step` calls this.

        Args:
            step: Number of steps taken.
            loss: The training loss.
            batch: Tensors to store beside a spike.
        """
        if self._active and self._is_spike(loss):
            self._store(step, loss, batch)

    def close(self) -> None:
        """Nothing remains to be written; the table is complete after each measurement."""

    @property
    def share(self) -> float:
        """Fraction of the time since the start that the monitor took."""
        return self._spent / max(time.perf_counter() - self._start, 1e-9)

    def value(self, quantity: str, **keys: Any) -> float:
        """The latest value of a quantity over everything, NaN before the first measurement.

        Args:
            quantity: A quantity of table `doctor`.
            **keys: Values of its key columns.

        Returns:
            The value.
        """
        if self.frame.empty:
            return float("nan")
        rows = self.frame[self.frame["quantity"].eq(quantity) & self.frame["t_low"].isna()]
        rows = rows[rows["layer"].eq("all") & rows["step"].eq(rows["step"].max())]
        for name, value in keys.items():
            rows = rows[rows[name].eq(value)]
        return float(rows["value"].iloc[0]) if len(rows) else float("nan")

    def _affordable(self) -> bool:
        """Whether the next measurement stays within the budget."""
        return self._spent + self._expected <= self.budget * (time.perf_counter() - self._start)

    def _prepare(self, data: Any, options: MeasureOptions) -> tuple[Subject, Request]:
        complete: MeasureOptions = {"device": next((str(p.device) for p in self._copies["raw"].parameters()), "cpu")}
        if "ema" in self._copies:
            complete |= {"proxy": "ema", "proxy_model": self._copies["ema"]}
        complete |= options
        subject, request = prepare_subject(self._copies["raw"], data, say=self._say, **complete)
        return replace(subject, run=self.out.name, checkpoint="monitor"), request

    def _measure(self, step: int) -> None:
        """One measurement of the present weights."""
        for name, network in self._models.items():
            self._copies[name].load_state_dict(network.state_dict())
        subject = replace(self._subject, step=step)
        settings = replace(self._request.settings, samples=self._next_samples, bins=(1, 10))
        request = replace(self._request, settings=settings, by_layer=False, batch_sizes=(self.batch_size,))
        tangent = "ema_tangent" if "ema" in subject.networks else "self_tangent"
        estimators = [find_estimator(name) for name in ("meanflow", tangent)]
        networks = {"raw": subject.module, **{k: v for k, v in subject.networks.items() if k == "ema"}}
        draws = subject.draws(request.seed)
        measurement = Measurement("variance", subject, request, draws, estimators)
        with np.errstate(divide="ignore", invalid="ignore"):
            measured = list(probe_field(draws, networks, settings.samples, _POSTERIOR, settings.dtype))
            measured += weight_distances(networks)
            own, frames = probe_gradient(measurement, self.batch_size)
            frame = doctor_frame(replace(measurement, name="doctor"), [*measured, *own], frames["variance"])
        self.frame = pd.concat([self.frame, frame], ignore_index=True) if len(self.frame) else frame
        self.out.mkdir(parents=True, exist_ok=True)
        write_table("doctor", self.frame, self.out)
        self._log(step)

    def _log(self, step: int) -> None:
        values = {f"mfdiag/{name}": self.value(name) for name in _LOGGED}
        values = {name: value for name, value in values.items() if np.isfinite(value)}
        if hasattr(self.writer, "add_scalar"):
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
        elif self.writer is not None:
            self.writer.log(values, step=step)

    def _is_spike(self, loss: float) -> bool:
        """Whether the loss is not finite, or far above the latest ones."""
        history = np.log(np.maximum([value for value in self._losses if np.isfinite(value)], 1e-300))
        self._losses.append(loss)
        if not np.isfinite(loss):
            return True
        if len(history) < _SETTLED or loss <= 0:
            return False
        center = np.median(history)
        spread = 1.4826 * np.median(np.abs(history - center))
        return bool(np.log(loss) - center > _SPIKE * max(spread, 1e-3))

    def _store(self, step: int, loss: float, batch: Mapping[str, Tensor] | None) -> None:
        """Store what is needed to look at a step again: weights, generator states and the batch; the largest stay."""
        size = loss if np.isfinite(loss) else np.inf
        if len(self.spikes) >= _SPIKES:
            smallest = min(self.spikes, key=lambda path: self._sizes[path])
            if size <= self._sizes[smallest]:
                return
            smallest.unlink(missing_ok=True)
            self.spikes.remove(smallest)
        folder = self.out / "spikes"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{step}.pt"
        content: dict[str, Any] = {
            "model" if name == "raw" else name: network.state_dict() for name, network in self._models.items()
        }
        content |= {"step": step, "loss": loss, "generators": _generators(), "batch": dict(batch or {})}
        with atomic_write(path) as temporary:
            torch.save(content, temporary)
        self.spikes.append(path)
        self._sizes[path] = size
        self._say(f"Loss {loss:.3g} at step {step:,}: stored {path}. Look again with `mfdiag doctor {path}`.")

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Leave random generators, gradient mode and autocast as they are."""
        states = _generators()
        devices = {p.device.type for network in self._models.values() for p in network.parameters()} | {"cpu"}
        try:
            with torch.enable_grad(), calls_closed():
                contexts = [torch.autocast(device, enabled=False) for device in devices]
                for context in contexts:
                    context.__enter__()
                try:
                    yield
                finally:
                    for context in reversed(contexts):
                        context.__exit__(None, None, None)
        finally:
            _restore(states)


def _copied(network: nn.Module) -> nn.Module:
    """A copy in eval mode, without parameters that the training does not change."""
    copied = copy.deepcopy(network).eval()
    if has_frozen_parameters(copied):
        freeze_as_buffers(copied)
    return copied


def _another_process() -> bool:
    """Whether this is not the first process of torch.distributed."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return ready and torch.distributed.get_rank() != 0


def _generators() -> dict[str, Any]:
    """States of the random generators of torch, numpy and Python."""
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - the one that the training may use
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _restore(states: Mapping[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    random.setstate(states["python"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
