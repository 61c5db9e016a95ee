"""Training a grid: cells of one shape together, each saved by itself, so that a killed run goes on where it was."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import Data, load_data
from mfdiag.flow.draw import Draws
from mfdiag.flow.paths import parse_path
from mfdiag.models.networks.registry import build_model
from mfdiag.models.prediction import as_average_velocity
from mfdiag.training.draws import Feed, Law
from mfdiag.training.ensemble import Ensemble, start, together
from mfdiag.training.grid import Cell
from mfdiag.training.loss import Params
from mfdiag.training.saved import (
    CHECKPOINT,
    STATE,
    LogEntry,
    Run,
    changes,
    find_run,
    number_entry,
    save_model,
    write_run,
)
from mfdiag.training.spec import TrainSpec

__all__ = ["Compile", "Measure", "TrainOptions", "TrainedCell", "estimate_seconds", "initial_module", "train"]

Compile = Literal["auto", "on", "off"]
Measure = Callable[[TrainSpec, Draws, nn.Module, nn.Module], list[LogEntry]]
"""Gradient statistics of a model in training and its average, as entries of the log; `step` is filled in later.

The draws are those it is trained on.
"""

_LOGGED = ("loss", "grad_norm")
_SHOWN = 3  # of the changed cells an error names
_TIMED_STEPS = 3
_COMPILED_FROM = 2_000  # steps: below, compiling takes longer than it saves
_TOGETHER = {"cpu": 16, "cuda": 512}  # models in one program: more no longer helps, and takes memory
_PARAMETERS = {"cpu": 2**26, "cuda": 2**29}  # in one program, over all its models


@dataclass(frozen=True)
class TrainOptions:
    """How a grid is trained; nothing here changes a result beyond rounding."""

    device: str = "cpu"
    compile: Compile = "auto"
    resume: bool = True


@dataclass(frozen=True)
class TrainedCell:
    """A finished cell: its checkpoint, and the log of the whole run; no checkpoint if its weights became infinite."""

    cell: Cell
    checkpoint: Path | None
    log: list[LogEntry]


def train(
    cells: Sequence[Cell],
    out: Path,
    options: TrainOptions = TrainOptions(),
    *,
    measure: Measure | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    say: Callable[[str], None],
) -> list[TrainedCell]:
    """Trains every cell and writes `out/CELL/model.safetensors` (raw and EMA weights); finished cells are left alone.

    The state of each cell is saved to `out/CELL/state.pt` every `save_every` steps and on Ctrl-C; a run goes on from
    there and ends with the weights of an uninterrupted one; so does one whose `steps` have grown since, where the
    learning rate is constant. A cell whose weights stop being finite ends there, the others go on. `measure` is called
    every `measure_every` steps; `progress` gets (what, steps done, steps in all).

    Raises InputError if model and data do not fit or `out` holds cells of another specification.
    """
    work = _prepare(cells, out, options)
    if not options.resume:
        for item in work:
            for name in (STATE, CHECKPOINT):
                (item.folder / name).unlink(missing_ok=True)
    total = sum(item.cell.spec.steps for item in work)
    groups = _groups(work, options.device)
    try:
        for number, group in enumerate(groups, 1):
            part = f", part {number} of {len(groups)}" if len(groups) > 1 else ""
            name = f"training {len(group)} of {len(work)} models{part}" if len(work) > 1 else "training"

            def report(name: str = name) -> None:
                if progress is not None:
                    progress(name, sum(item.step for item in work), total)

            _train_group(group, options, measure, report, say)
    except KeyboardInterrupt:
        done = sum(item.finished for item in work)
        kept = f"{done} of {len(work)} models are finished, the others saved as they stand in {out}"
        raise KeyboardInterrupt(f"{kept}; the same command goes on from there") from None
    return [TrainedCell(item.cell, item.folder / CHECKPOINT if item.is_finite else None, item.run.log) for item in work]


def estimate_seconds(cells: Sequence[Cell], out: Path, options: TrainOptions, *, say: Callable[[str], None]) -> float:
    """Time that `train` has left to spend, from a few uncompiled steps of each group: an upper estimate."""
    work = _prepare(cells, out, options)
    seconds = 0.0
    for group in _groups(work, options.device):
        ensemble = _ensemble(group, replace(options, compile="off"), say)
        ensemble.advance(1)  # allocates, and draws the first block
        before = time.perf_counter()
        ensemble.advance(_TIMED_STEPS)
        ensemble.take_tally()  # waits for the device
        seconds += (time.perf_counter() - before) / _TIMED_STEPS * (group[0].cell.spec.steps - group[0].step)
        ensemble.feed.close()
    return seconds


@dataclass
class _Work:
    """A cell on its way: its folder, network, draws, state and log, and the steps it has done."""

    cell: Cell
    folder: Path
    module: nn.Module
    draws: Draws
    run: Run
    step: int

    @property
    def is_finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in self.run.state.params.values())

    @property
    def finished(self) -> bool:
        return self.step == self.cell.spec.steps and ((self.folder / CHECKPOINT).exists() or not self.is_finite)

    def save(self) -> None:
        if self.step == self.cell.spec.steps and self.is_finite:
            save_model(self.folder / CHECKPOINT, self.module, self.cell.spec, self.run.state)
        write_run(self.folder, self.cell.spec, self.run)


def _prepare(cells: Sequence[Cell], out: Path, options: TrainOptions) -> list[_Work]:
    """Each cell as it stands; refuses what cannot be trained before anything is."""
    data = {name: load_data(name) for name in dict.fromkeys(cell.spec.data for cell in cells)}
    laws = {law: law.draws(data[law.data]) for law in dict.fromkeys(Law.of(cell.spec) for cell in cells)}
    work, changed = [], []
    for cell in cells:
        folder, module = out / cell.name, initial_module(cell.spec)
        _check_fit(module, data[cell.spec.data], cell.spec)
        run = Run(start(module))
        if options.resume and (kept := find_run(folder)):
            before, run = kept
            if found := changes(before, cell.spec, can_go_on=(folder / STATE).exists()):
                changed.append(f"{cell.name or folder} ({', '.join(found)})")
        work.append(_Work(cell, folder, module, laws[Law.of(cell.spec)], run, int(run.state.steps)))
    if changed:
        shown = "; ".join(changed[:_SHOWN]) + ("; ..." if len(changed) > _SHOWN else "")
        raise InputError(
            f"{len(changed)} of {len(cells)} models in {out} come from another specification: {shown}. Choose another "
            "folder, or train all of them again with --overwrite."
        )
    return work


def _groups(work: Sequence[_Work], device: str) -> list[list[_Work]]:
    """Unfinished cells that can train together, the same shape at the same step, in the order of the grid."""
    kind = device.partition(":")[0]
    found: dict[tuple[object, ...], list[_Work]] = {}
    for item in work:
        if not item.finished:
            points = item.draws.data
            key = (together(item.cell.spec), points.shape, points.num_classes, item.step)
            found.setdefault(key, []).append(item)
    parts = []
    for group in found.values():
        parameters = sum(p.numel() for p in group[0].module.parameters())
        size = max(1, min(_TOGETHER[kind], _PARAMETERS[kind] // parameters))
        count = math.ceil(len(group) / size)
        parts += [group[i * len(group) // count : (i + 1) * len(group) // count] for i in range(count)]
    return parts


def _ensemble(group: Sequence[_Work], options: TrainOptions, say: Callable[[str], None]) -> Ensemble:
    specs = [item.cell.spec for item in group]
    return Ensemble(
        group[0].module,
        specs,
        [item.run.state for item in group],
        Feed(specs, [item.draws.data for item in group], options.device),
        device=options.device,
        compiled=options.compile == "on" or (options.compile == "auto" and specs[0].steps >= _COMPILED_FROM),
        say=say,
    )


def _train_group(
    group: Sequence[_Work],
    options: TrainOptions,
    measure: Measure | None,
    report: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    spec = group[0].cell.spec  # for what they have in common
    ensemble = _ensemble(group, options, say)
    logged = max([entry.step for entry in group[0].run.log if entry.quantity in _LOGGED], default=0)
    measured = measure is not None and spec.measure_every > 0
    intervals = [spec.log_every, spec.save_every, *([spec.measure_every] if measured else [])]

    def due(step: int, interval: int) -> bool:
        return step % interval == 0 or step == spec.steps

    def keep() -> None:
        for item, state in zip(group, ensemble.states(), strict=True):
            item.run.state, item.step = state, int(state.steps)
            item.save()

    try:
        while (step := ensemble.steps_done) < spec.steps:
            stop = min(spec.steps, *(step - step % interval + interval for interval in intervals))
            ensemble.advance(stop - step)
            if due(stop, spec.log_every):
                means = (ensemble.take_tally() / (stop - logged)).tolist()
                count, logged = (stop - logged) * spec.batch_size, stop
                for item, values in zip(group, means, strict=True):
                    item.run.log += [number_entry(stop, *pair, count) for pair in zip(_LOGGED, values, strict=True)]
            if measure is not None and measured and due(stop, spec.measure_every):
                for item, state in zip(group, ensemble.states(), strict=True):
                    weights = [_filled(item.module, values) for values in (state.params, state.ema)]
                    item.run.log += [
                        entry._replace(step=stop) for entry in measure(item.cell.spec, item.draws, *weights)
                    ]
            if due(stop, spec.save_every):
                keep()
            for item in group:
                item.step = stop
            report()
    except KeyboardInterrupt:
        keep()
        raise
    finally:
        ensemble.feed.close()


def _filled(module: nn.Module, params: Params) -> nn.Module:
    filled = copy.deepcopy(module).cpu()
    filled.load_state_dict(params, strict=False)
    return filled.eval().requires_grad_(False)


def initial_module(spec: TrainSpec) -> nn.Module:
    """u(x, r, t, y) before training; its weights depend on the specification's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        network = build_model(spec.model.name, spec.model.arguments)
    return as_average_velocity(network, spec.prediction, parse_path(spec.path))


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
