"""What a run leaves in its folder: a state that survives being killed, its log, and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import nn

from mfdiag.errors import InputError
from mfdiag.models.checkpoint import save_checkpoint
from mfdiag.models.containers import container_of, read_torch
from mfdiag.models.description import Description
from mfdiag.storage import replacing
from mfdiag.training.ensemble import State
from mfdiag.training.optimizers import Moments
from mfdiag.training.spec import TrainSpec

__all__ = ["CHECKPOINT", "STATE", "Entry", "Run", "changes", "read_run", "save_model", "write_run"]

CHECKPOINT = "model.safetensors"
STATE = "state.pt"


class Entry(NamedTuple):
    """One number of the log, at the step that made `step` steps complete; interval and error are NaN where unknown."""

    step: int
    quantity: str
    value: float
    std_error: float
    ci_low: float
    ci_high: float
    n_samples: int
    status: str


@dataclass
class Run:
    """One model in training: its state and its log, earlier parts of a resumed run included."""

    state: State
    log: list[Entry] = field(default_factory=list)


def write_run(folder: Path, spec: TrainSpec, run: Run) -> None:
    """Writes `folder/state.pt`, atomically."""
    content = {
        "specification": spec.model_dump(mode="json", by_alias=True),
        "state": {**run.state._asdict(), "moments": run.state.moments._asdict()},
        "log": [tuple(entry) for entry in run.log],
    }
    with replacing(folder / STATE) as temporary:
        torch.save(content, temporary)


def read_run(folder: Path) -> tuple[dict[str, Any], Run]:
    """The specification, as plain values, and the run in `folder/state.pt`. Raises InputError for a damaged file."""
    path = folder / STATE
    kept = read_torch(path, container_of(path), load=True).tree
    try:
        state = State(**{**kept["state"], "moments": Moments(**kept["state"]["moments"])})
        return kept["specification"], Run(state, [Entry(*entry) for entry in kept["log"]])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"Expected {path} to hold a training state of this version, but it does not ({error}); choose another "
            "folder, or train again with --overwrite."
        ) from error


def changes(before: dict[str, Any], spec: TrainSpec) -> list[str]:
    """What of a kept specification differs from `spec`, as `field: old -> new`."""
    try:
        kept = TrainSpec.model_validate(before).model_dump(mode="json", by_alias=True)
    except ValidationError:
        kept = before  # of another version
    now = spec.model_dump(mode="json", by_alias=True)
    return [f"{name}: {kept.get(name)} -> {now[name]}" for name in now if kept.get(name) != now[name]]


def save_model(path: Path, module: nn.Module, spec: TrainSpec, state: State) -> None:
    """Writes a checkpoint with raw and EMA weights; `module` lends its structure and its buffers."""
    module.load_state_dict(state.params, strict=False)
    description = Description(
        architecture=spec.model,
        times=spec.times,
        data=spec.data,
        step=int(state.steps),
        ema_decay=spec.ema_decay,
        seed=spec.seed,
        specification=spec.model_dump(mode="json", by_alias=True),
    )
    save_checkpoint(path, module, module.state_dict() | state.ema, description)
