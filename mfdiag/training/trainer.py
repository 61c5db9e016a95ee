"""Training a grid: cells of one shape train together; each is saved separately, so that a killed run resumes."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mfdiag.errors import InputError, abbreviated, first_line
from mfdiag.flow.data.datasets import Data, conditions_of, load_data
from mfdiag.flow.data.scale_check import whole_numbers_note
from mfdiag.flow.draw import Draws
from mfdiag.flow.paths import parse_path
from mfdiag.flow.times import same_times_note
from mfdiag.inputs import changed_inputs, current_inputs, note_read
from mfdiag.models.call_adapter import unlabeled_note
from mfdiag.models.networks.registry import build_model
from mfdiag.models.prediction import as_average_velocity
from mfdiag.storage import remove_orphans
from mfdiag.training.draws import BatchFeed, SamplingKey
from mfdiag.training.ensemble import Ensemble, ensemble_key, initial_state
from mfdiag.training.grid import GridCell
from mfdiag.training.loss import Params
from mfdiag.training.saved import (
    CHECKPOINT,
    STATE,
    LogEntry,
    TrainingRun,
    changed_fields,
    kept_checkpoint,
    load_run,
    number_entry,
    save_model,
    save_run,
)
from mfdiag.training.spec import TrainSpec
from mfdiag.usercode import code_file

__all__ = [
    "Compile",
    "MeasureModel",
    "TrainOptions",
    "TrainedCell",
    "estimate_seconds",
    "initial_module",
    "prepare_folder",
    "train",
]

Compile = Literal["auto", "on", "off"]
"""Whether to compile the training step; "auto" compiles long runs."""

MeasureModel = Callable[[TrainSpec, Draws, nn.Module, nn.Module], list[LogEntry]]
"""(specification, draws that it is trained on, model, model with EMA weights) -> entries of the log.

The trainer fills in the `step` of each entry.
"""

_LOGGED = ("loss", "grad_norm")
_CELLS_IN_ERROR = 3  # changed cells that an error lists
_TIMED_STEPS = 3  # enough for an upper estimate of the time
_COMPILE_FROM_STEPS = 2_000  # for fewer steps, compiling takes longer than it saves
_MODELS_TOGETHER = {"cpu": 16, "cuda": 512}  # more models in one program are not faster, and take memory
_PARAMETERS_TOGETHER = {"cpu": 2**26, "cuda": 2**29}  # over all models of one program


@dataclass(frozen=True)
class TrainOptions:
    """How to train a grid. No option changes a result beyond rounding.

    Attributes:
        device: cpu, cuda or cuda:N.
        compile: Whether to compile the training step.
        resume: Whether earlier runs in the folder resume; otherwise they start again.
    """

    device: str = "cpu"
    compile: Compile = "auto"
    resume: bool = True


@dataclass(frozen=True)
class TrainedCell:
    """A finished cell, its checkpoint (None if its weights are not finite), and the log of the whole run."""

    cell: GridCell
    checkpoint: Path | None
    log: list[LogEntry]


def train(
    cells: Sequence[GridCell],
    out: Path,
    options: TrainOptions = TrainOptions(),
    *,
    measure: MeasureModel | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    say: Callable[[str], None],
) -> list[TrainedCell]:
    """Train every cell and write `out/CELL/model.safetensors`, with raw and EMA weights.

    The state of each cell is saved to `out/CELL/state.pt` every `save_every` steps and on Ctrl-C. A later call resumes
    from there and ends with the weights of an uninterrupted run, also with a larger number of steps if the learning
    rate is constant. Finished cells are not trained again. A cell whose weights stop being finite does not affect the
    others.

    Args:
        cells: What to train.
        out: Folder of the grid.
        options: How to train.
        measure: Called for each model every `measure_every` steps; its entries go to the log.
        progress: Called with (text, completed steps, all steps), over all cells.
        say: Receives notes.

    Returns:
        The finished cells, in order.

    Raises:
        InputError: Model and data do not fit, or `out` has cells of another specification.
        KeyboardInterrupt: Ctrl-C, after the states are saved.
    """
    work = prepare_folder(cells, out, options, say=say)
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
        raise KeyboardInterrupt(
            f"{done} of {len(work)} models are finished, the states of the others are saved in {out}; run the same "
            "command to resume"
        ) from None
    return [TrainedCell(item.cell, item.folder / CHECKPOINT if item.is_finite else None, item.run.log) for item in work]


def prepare_folder(
    cells: Sequence[GridCell], out: Path, options: TrainOptions, *, say: Callable[[str], None]
) -> list[_Work]:
    """Check that all cells can be trained, and remove their earlier runs if they do not resume.

    Args:
        cells: What to train.
        out: Folder of the grid.
        options: How to train.
        say: Receives notes.

    Returns:
        The cells, each with its network and state.

    Raises:
        InputError: Model and data do not fit, or `out` has cells of another specification.
    """
    work = _prepare(cells, out, options, say)
    if not options.resume:
        for item in work:
            for name in (STATE, CHECKPOINT):
                (item.folder / name).unlink(missing_ok=True)
    return work


def estimate_seconds(
    cells: Sequence[GridCell], out: Path, options: TrainOptions, *, say: Callable[[str], None]
) -> float:
    """Estimate the time that `train` would take, from a few uncompiled steps of each group.

    Args:
        cells: What would be trained.
        out: Folder of the grid; steps that are done there do not count.
        options: How to train.
        say: Receives notes.

    Returns:
        Seconds, an upper estimate.

    Raises:
        InputError: As `train`.
    """
    work = _prepare(cells, out, options, say)
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
    """A cell in training: its folder, network, draws, state and log, and the number of completed steps."""

    cell: GridCell
    folder: Path
    module: nn.Module
    draws: Draws
    run: TrainingRun
    step: int

    @property
    def is_finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in self.run.state.params.values())

    @property
    def finished(self) -> bool:
        return self.step == self.cell.spec.steps and ((self.folder / CHECKPOINT).exists() or not self.is_finite)

    def keep(self) -> None:
        """Write a checkpoint that later steps do not replace."""
        if self.is_finite:
            path = self.folder / kept_checkpoint(self.step)
            save_model(path, self.module, self.cell.spec, self.run.state)

    def save(self) -> None:
        if self.step == self.cell.spec.steps and self.is_finite:
            save_model(self.folder / CHECKPOINT, self.module, self.cell.spec, self.run.state)
        save_run(self.folder, self.cell.spec, self.run)


def _prepare(cells: Sequence[GridCell], out: Path, options: TrainOptions, say: Callable[[str], None]) -> list[_Work]:
    """Load or start every cell. Raises InputError before anything is trained if one of them cannot be."""
    data = {name: load_data(name) for name in dict.fromkeys(cell.spec.data for cell in cells)}
    draws = {key: key.draws(data[key.data]) for key in dict.fromkeys(SamplingKey.of(cell.spec) for cell in cells)}
    notes = [whole_numbers_note(item) for item in data.values()]
    notes += [note for cell in cells for note in cell.notes]
    notes += [same_times_note(item.times) for item in draws.values()]
    for note in filter(None, dict.fromkeys(notes)):
        say(note)
    work, changed = [], []
    for cell in cells:
        folder, module = out / cell.name, initial_module(cell.spec)
        _check_fit(module, data[cell.spec.data], cell.spec)
        unlabeled = unlabeled_note(module, data[cell.spec.data])
        if unlabeled is not None and unlabeled not in notes:
            notes.append(unlabeled)
            say(unlabeled)
        run = TrainingRun(initial_state(module))
        if options.resume and (saved := load_run(folder)):
            saved_spec, run = saved
            if differences := changed_fields(saved_spec, cell.spec, can_resume=(folder / STATE).exists()):
                changed.append(f"{cell.name or folder} ({', '.join(differences)})")
        read = _inputs_of(cell.spec)
        if files := changed_inputs(run.inputs, read):
            changed.append(f"{cell.name or folder} ({', '.join(files)})")
        run.inputs = read
        work.append(_Work(cell, folder, module, draws[SamplingKey.of(cell.spec)], run, int(run.state.steps)))
    if changed:
        listed = abbreviated(changed, _CELLS_IN_ERROR, "; ")
        raise InputError(
            f"{len(changed)} of {len(cells)} models in {out} come from another specification: {listed}. Choose another "
            "folder, or train all of them again with --overwrite."
        )
    remove_orphans(*(item.folder for item in work))
    return work


def _inputs_of(spec: TrainSpec) -> list[dict[str, Any]]:
    """The files of data and code that a cell reads, with their hashes."""
    for code in spec.code:
        if (file := code_file(code)) is not None:
            note_read(file, kind="code")
    entries = current_inputs().entries()
    return [e for e in entries if e["kind"] == "code" or e.get("of", e["path"]) in (spec.data, spec.coupling)]


def _groups(work: Sequence[_Work], device: str) -> list[list[_Work]]:
    """Unfinished cells in groups that can train together: of one shape and at the same step."""
    kind = device.partition(":")[0]
    by_key: dict[tuple[object, ...], list[_Work]] = {}
    for item in work:
        if not item.finished:
            data = item.draws.data
            key = (ensemble_key(item.cell.spec), data.shape, data.num_classes, item.step)
            by_key.setdefault(key, []).append(item)
    parts = []
    for group in by_key.values():
        parameters = sum(p.numel() for p in group[0].module.parameters())
        size = max(1, min(_MODELS_TOGETHER[kind], _PARAMETERS_TOGETHER[kind] // parameters))
        count = math.ceil(len(group) / size)
        parts += [group[i * len(group) // count : (i + 1) * len(group) // count] for i in range(count)]
    return parts


def _ensemble(group: Sequence[_Work], options: TrainOptions, say: Callable[[str], None]) -> Ensemble:
    specs = [item.cell.spec for item in group]
    return Ensemble(
        group[0].module,
        specs,
        [item.run.state for item in group],
        BatchFeed(specs, [item.draws.data for item in group], options.device),
        device=options.device,
        compiled=options.compile == "on" or (options.compile == "auto" and specs[0].steps >= _COMPILE_FROM_STEPS),
        say=say,
    )


def _train_group(
    group: Sequence[_Work],
    options: TrainOptions,
    measure: MeasureModel | None,
    report: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    spec = group[0].cell.spec  # the same for all of them in what is used here
    ensemble = _ensemble(group, options, say)
    logged = max([entry.step for entry in group[0].run.log if entry.quantity in _LOGGED], default=0)
    measured = measure is not None and spec.measure_every > 0
    intervals = [spec.log_every, spec.save_every, *([spec.measure_every] if measured else [])]
    intervals += [spec.keep_every] if spec.keep_every else []

    def due(step: int, interval: int) -> bool:
        return step % interval == 0 or step == spec.steps

    def each() -> Iterator[_Work]:
        for item, state in zip(group, ensemble.states(), strict=True):
            item.run.state, item.step = state, int(state.steps)
            yield item

    def save() -> None:
        for item in each():
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
                    models = [_with_weights(item.module, values) for values in (state.params, state.ema)]
                    item.run.log += [
                        entry._replace(step=stop) for entry in measure(item.cell.spec, item.draws, *models)
                    ]
            if spec.keep_every and stop % spec.keep_every == 0 and stop < spec.steps:
                for item in each():
                    item.keep()
            if due(stop, spec.save_every):
                save()
            for item in group:
                item.step = stop
            report()
    except KeyboardInterrupt:
        save()
        raise
    finally:
        ensemble.feed.close()


def _with_weights(module: nn.Module, params: Params) -> nn.Module:
    copied = copy.deepcopy(module).cpu()
    copied.load_state_dict(params, strict=False)
    return copied.eval().requires_grad_(False)


def initial_module(spec: TrainSpec) -> nn.Module:
    """u(x, r, t, labels) before training; its weights depend on the seed of the specification alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        network = build_model(spec.model.name, spec.model.arguments)
    return as_average_velocity(network, spec.prediction, parse_path(spec.path))


def _check_fit(module: nn.Module, data: Data, spec: TrainSpec) -> None:
    if names := ", ".join(conditions_of(data)):
        raise InputError(
            f"Expected data without conditions for the built-in model {spec.model.name!r}, which takes labels alone, "
            f"but {spec.data!r} has {names} beside its samples. Leave them out with conditions=none, or train with "
            "your own code and measure with --model."
        )
    x, time = torch.zeros(2, *data.shape), torch.ones(2)
    try:
        with torch.no_grad():
            shape = list(module(x, time, time).shape[1:])
            problem = "" if shape == list(data.shape) else f"it returns shape {shape}"
    except (RuntimeError, ValueError) as error:
        problem = f"it fails: {first_line(error)}"
    if problem:
        raise InputError(
            f"Expected model {spec.model.name!r} to map samples of {spec.data!r}, shape {list(data.shape)}, to the "
            f"same shape, but {problem}. Correct model.arguments."
        )
    classes = spec.model.arguments.get("num_classes", 0)
    if classes not in (0, data.num_classes):
        allowed = f"0 or the {data.num_classes} classes of {spec.data!r}"
        allowed = allowed if data.num_classes else f"0, because {spec.data!r} has no labels"
        raise InputError(f"Expected model.arguments.num_classes to be {allowed}, but got {classes}. Change it.")
