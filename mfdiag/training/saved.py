"""What a training run writes to its folder: the state from which a killed run resumes, its log, and checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import nn

from mfdiag.errors import InputError
from mfdiag.models.checkpoint import load_model, save_checkpoint
from mfdiag.models.description import Description
from mfdiag.models.formats.containers import read_container
from mfdiag.models.prediction import PredictionAdapter
from mfdiag.storage import save_torch
from mfdiag.training.ensemble import TrainState, initial_state
from mfdiag.training.optimizers import OptimizerMoments
from mfdiag.training.spec import TrainSpec

__all__ = [
    "CHECKPOINT",
    "STATE",
    "LogEntry",
    "TrainingRun",
    "changed_fields",
    "kept_checkpoint",
    "load_run",
    "number_entry",
    "save_model",
    "save_run",
]

CHECKPOINT = "model.safetensors"
"""Name of the checkpoint in the folder of a run."""

STATE = "state.pt"
"""Name of the training state in the folder of a run."""

_WRAPPED = "network."  # prefix of a network's parameters inside PredictionAdapter


def kept_checkpoint(step: int) -> str:
    """Name of the checkpoint that a run keeps after `step` steps, in its folder."""
    return f"step={step}/{CHECKPOINT}"


class LogEntry(NamedTuple):
    """One number of the log after `step` steps; error and interval are NaN if they are not known."""

    step: int
    quantity: str
    value: float
    std_error: float
    ci_low: float
    ci_high: float
    n_samples: int
    status: str


def number_entry(step: int, quantity: str, value: float, n_samples: int) -> LogEntry:
    """An entry without an interval.

    Args:
        step: Number of completed steps.
        quantity: Name of the quantity in table `training`.
        value: Its value.
        n_samples: Number of samples behind it.

    Returns:
        The entry; its status is `nonfinite` if the value is not finite.
    """
    nan = math.nan
    return LogEntry(step, quantity, value, nan, nan, nan, n_samples, "ok" if math.isfinite(value) else "nonfinite")


@dataclass
class TrainingRun:
    """One model in training: its state, its log from the first step on, and the files it read, as in a manifest."""

    state: TrainState
    log: list[LogEntry] = field(default_factory=list)
    inputs: list[dict[str, Any]] = field(default_factory=list)


def save_run(folder: Path, spec: TrainSpec, run: TrainingRun) -> None:
    """Write `folder/state.pt` atomically.

    Args:
        folder: Folder of the run.
        spec: Its specification, which is saved too.
        run: State and log.
    """
    content = {
        "specification": spec.model_dump(mode="json", by_alias=True),
        "state": {**run.state._asdict(), "moments": run.state.moments._asdict()},
        "log": [tuple(entry) for entry in run.log],
        "inputs": run.inputs,
    }
    save_torch(content, folder / STATE)


def load_run(folder: Path) -> tuple[dict[str, Any], TrainingRun] | None:
    """The specification (as plain values) and the run in `folder`; None if the folder has neither state nor checkpoint.

    A checkpoint without a state, as after the state was deleted, gives a run without a log. A damaged file, or one of
    another kind, raises InputError.
    """
    if (folder / STATE).exists():
        return _read_state(folder / STATE)
    if not (folder / CHECKPOINT).exists():
        return None
    loaded = load_model(folder / CHECKPOINT)
    if loaded.description is None:
        raise InputError(
            f"Expected {loaded.path} to be a model of this grid, but it has no description; move it to another folder."
        )
    prefix = "" if loaded.description.prediction == "u" else _WRAPPED
    names = dict(loaded.module.named_parameters())
    params, ema = ({prefix + name: loaded.state[key][name] for name in names} for key in ("raw", "ema"))
    state = initial_state(loaded.module)._replace(params=params, ema=ema)
    return loaded.description.specification, TrainingRun(
        state._replace(steps=torch.tensor(float(loaded.description.step)))
    )


def _read_state(path: Path) -> tuple[dict[str, Any], TrainingRun]:
    content = read_container(path, load=True).tree
    try:
        state = TrainState(**{**content["state"], "moments": OptimizerMoments(**content["state"]["moments"])})
        log = [LogEntry(*entry) for entry in content["log"]]
        return content["specification"], TrainingRun(state, log, list(content.get("inputs", [])))
    except (KeyError, TypeError) as error:
        raise InputError(
            f"Expected {path} to be a training state of this version, but it is not ({error}). Choose another folder, "
            "or start again with --overwrite."
        ) from error


def changed_fields(before: dict[str, Any], spec: TrainSpec, *, can_resume: bool) -> list[str]:
    """The fields in which a saved specification differs from the current one.

    A larger number of steps alone does not count as a change if the run can resume and its learning rate and beta do
    not depend on the number of steps: it ends with the same weights as a run that had this many steps from the start.

    Args:
        before: The saved specification.
        spec: The current one.
        can_resume: Whether the training state is available.

    Returns:
        Each change as `field: old -> new`.
    """
    try:
        saved = TrainSpec.model_validate(before, context={"stored": True}).model_dump(mode="json", by_alias=True)
    except ValidationError:
        saved = before  # of another version
    now = spec.model_dump(mode="json", by_alias=True)
    differ = [name for name in now if saved.get(name) != now[name]]
    scheduled = spec.schedule.name != "constant" or (spec.loss.beta_by is not None and spec.loss.beta_by.end != 1)
    if can_resume and differ == ["steps"] and saved["steps"] < spec.steps and not scheduled:
        return []
    return [f"{name}: {saved.get(name)} -> {now[name]}" for name in differ]


def save_model(path: Path, module: nn.Module, spec: TrainSpec, state: TrainState) -> None:
    """Write a checkpoint with raw and EMA weights.

    Args:
        path: The file.
        module: The network, used for its structure and buffers; its weights are overwritten.
        spec: The specification, which goes into the checkpoint's description.
        state: The weights.
    """
    module.load_state_dict(state.params, strict=False)
    bare = bare_network(module)
    ema = {name.removeprefix(_WRAPPED): value for name, value in state.ema.items()} if bare is not module else state.ema
    description = Description(
        architecture=spec.model,
        path=spec.path,
        source=spec.source,
        coupling=spec.coupling,
        prediction=spec.prediction,
        times=spec.times,
        data=spec.data,
        step=int(state.steps),
        ema_decay=spec.ema_decay,
        seed=spec.seed,
        specification=spec.model_dump(mode="json", by_alias=True),
    )
    save_checkpoint(path, bare, bare.state_dict() | ema, description)


def bare_network(module: nn.Module) -> nn.Module:
    """The network itself, without the wrapper that turns its prediction into an average velocity."""
    return module.network if isinstance(module, PredictionAdapter) else module
