"""What a run leaves in its folder: a state that survives being killed, its log, and checkpoints."""

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
from mfdiag.storage import atomic_write
from mfdiag.training.ensemble import State, start
from mfdiag.training.optimizers import OptimizerMoments
from mfdiag.training.spec import TrainSpec

__all__ = ["CHECKPOINT", "STATE", "LogEntry", "Run", "changes", "find_run", "number_entry", "save_model", "write_run"]

CHECKPOINT = "model.safetensors"
STATE = "state.pt"
_WRAPPED = "network."  # begins the names of a network's parameters inside PredictionAdapter


class LogEntry(NamedTuple):
    """One number of the log, at the step that made `step` steps complete; interval and error are NaN where unknown."""

    step: int
    quantity: str
    value: float
    std_error: float
    ci_low: float
    ci_high: float
    n_samples: int
    status: str


def number_entry(step: int, quantity: str, value: float, n_samples: int) -> LogEntry:
    """An entry without an interval."""
    nan = math.nan
    return LogEntry(step, quantity, value, nan, nan, nan, n_samples, "ok" if math.isfinite(value) else "nonfinite")


@dataclass
class Run:
    """One model in training: its state and its log, earlier parts of a resumed run included."""

    state: State
    log: list[LogEntry] = field(default_factory=list)


def write_run(folder: Path, spec: TrainSpec, run: Run) -> None:
    """Writes `folder/state.pt`, atomically."""
    content = {
        "specification": spec.model_dump(mode="json", by_alias=True),
        "state": {**run.state._asdict(), "moments": run.state.moments._asdict()},
        "log": [tuple(entry) for entry in run.log],
    }
    with atomic_write(folder / STATE) as temporary:
        torch.save(content, temporary)


def find_run(folder: Path) -> tuple[dict[str, Any], Run] | None:
    """The specification, as plain values, and the run in `folder`; None if nothing is there.

    A finished checkpoint whose state was deleted is a run without a log. Raises InputError for a damaged file.
    """
    if (folder / STATE).exists():
        return _read_state(folder / STATE)
    if not (folder / CHECKPOINT).exists():
        return None
    loaded = load_model(folder / CHECKPOINT)
    if loaded.description is None:
        raise InputError(f"Expected a model of this grid at {loaded.path}, but it does not say what it is; move it.")
    before = "" if loaded.description.prediction == "u" else _WRAPPED
    names = dict(loaded.module.named_parameters())
    params, ema = ({before + name: loaded.state[key][name] for name in names} for key in ("raw", "ema"))
    state = start(loaded.module)._replace(params=params, ema=ema)
    return loaded.description.specification, Run(state._replace(steps=torch.tensor(float(loaded.description.step))))


def _read_state(path: Path) -> tuple[dict[str, Any], Run]:
    kept = read_container(path, load=True).tree
    try:
        state = State(**{**kept["state"], "moments": OptimizerMoments(**kept["state"]["moments"])})
        return kept["specification"], Run(state, [LogEntry(*entry) for entry in kept["log"]])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"Expected {path} to hold a training state of this version, but it does not ({error}); choose another "
            "folder, or train again with --overwrite."
        ) from error


def changes(before: dict[str, Any], spec: TrainSpec, *, can_go_on: bool) -> list[str]:
    """What of a kept specification differs from `spec`, as `field: old -> new`.

    More steps alone are no difference where the learning rate does not depend on their number and the state is there
    to `can_go_on` from: the run goes on, and ends with the weights of one that was longer from the start.
    """
    try:
        kept = TrainSpec.model_validate(before).model_dump(mode="json", by_alias=True)
    except ValidationError:
        kept = before  # of another version
    now = spec.model_dump(mode="json", by_alias=True)
    differ = [name for name in now if kept.get(name) != now[name]]
    if can_go_on and differ == ["steps"] and kept["steps"] < spec.steps and spec.schedule.name == "constant":
        return []
    return [f"{name}: {kept.get(name)} -> {now[name]}" for name in differ]


def save_model(path: Path, module: nn.Module, spec: TrainSpec, state: State) -> None:
    """Writes a checkpoint with raw and EMA weights; `module` lends its structure and its buffers."""
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
    """The network itself, without what turns its prediction into an average velocity."""
    return module.network if isinstance(module, PredictionAdapter) else module
