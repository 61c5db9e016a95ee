"""The networks and data sets on which faults are planted, and how a trained model is stored for mfdiag to read."""

from __future__ import annotations

import csv
import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from training_loop import Params, Recipe, Run, train

from mfdiag.flow.data.datasets import load_data
from mfdiag.models.checkpoint import save_checkpoint
from mfdiag.models.description import Architecture, Description
from mfdiag.models.networks.registry import build_model

CLASSES = 4  # the quadrant of a point is its label
POINTS = 8192
TUNING, HELD_OUT = ("two_moons", "eight_gaussians", "two_spirals"), ("checkerboard", "pinwheel")
SHOWN = (
    "never_trained", "rate_too_small", "loss_pinned", "ema_never_updated", "ema_too_slow", "ema_too_fast", "diverged",
    "bf16_weights", "nan_weights",
)  # fmt: skip
_TIMES = "logit_normal:-0.4,1,r_ne_t=0.5"  # training_loop.sorted_pairs


@dataclass(frozen=True)
class Network:
    """A built-in network, the shape of its samples, the lines of a script that go with it, and its data sets."""

    name: str
    arguments: dict[str, Any]
    shape: tuple[int, ...]
    recipe: Recipe
    datasets: tuple[str, ...]
    like: str = ""  # the network whose cases it is trained in
    held_out: bool = False


NETWORKS = {
    "mlp": Network("mlp", {"dim": 2, "hidden": 64, "depth": 3}, (2,), Recipe(rate=5e-3, steps=900), TUNING + HELD_OUT),
    "dit": Network(
        "dit",
        {"channels": 2, "size": 1, "patch": 1, "width": 32, "depth": 1, "heads": 2, "mlp_ratio": 2.0},
        (2, 1, 1),
        Recipe(rate=2e-3, steps=1200, batch=128),  # fewer have not learned du/dx, so that a wrong tangent hardly shows
        ("two_moons", "eight_gaussians", "checkerboard", "pinwheel"),
    ),
    "images": Network(
        "dit",
        {"channels": 1, "size": 8, "patch": 2, "width": 48, "depth": 2, "heads": 4, "mlp_ratio": 2.0},
        (1, 8, 8),
        Recipe(rate=2e-3, steps=1200, batch=128),
        ("digits",),
    ),
    "pixels": Network(
        "mlp",
        {"dim": 64, "hidden": 128, "depth": 3},
        (64,),
        Recipe(rate=2e-3, steps=1200, batch=128),
        ("digits",),
        like="mlp",
    ),
    "deep": Network(
        "mlp",
        {"dim": 64, "hidden": 96, "depth": 5},
        (64,),
        Recipe(rate=1e-3, steps=1500, batch=64),
        ("digits",),
        like="mlp",
        held_out=True,
    ),
}


@dataclass(frozen=True)
class Case:
    """One way to train models: healthy, or with a planted fault.

    Attributes:
        kind: Name of the fault, or of the healthy way.
        changes: Fields of `Recipe` that differ from the plain loop.
        expected: Codes of findings that name the fault; none for healthy models.
        why: What went wrong, as the user would tell it afterwards.
        severity: Which of several degrees this is.
        networks: The networks on which it makes sense.
        options: What the user passes to mfdiag beside the checkpoint.
        labeled: Whether the network takes labels.
        times: The sampler of times that the file declares.
        ema_decay: The decay that the file declares.
        data: Changes the stored data, so that training and measuring both see it.
        factor: Steps over those of the plain loop.
        save_at: Fractions of the run after which a checkpoint is stored too.
    """

    kind: str
    changes: dict[str, Any]
    expected: tuple[str, ...] = ()
    why: str = ""
    severity: str = "plain"
    networks: tuple[str, ...] = ("mlp", "dit")
    options: dict[str, Any] | None = None
    labeled: bool = False
    times: str = _TIMES
    ema_decay: float = 0.99
    data: Any = None
    factor: float = 1.0
    save_at: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.severity}"


def networks_of(case: Case) -> tuple[str, ...]:
    """The networks that a case trains: its own, and those alike on other data, unless the file or the log shows it."""
    alike = [name for name, own in NETWORKS.items() if own.like in case.networks]
    return case.networks if case.kind in SHOWN or case.severity == "mild" else (*case.networks, *alike)


def points_of(dataset: str, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Points and labels of a case's data set: those of the plain one, unless the case changes the data."""
    stored = np.asarray(load_data(dataset).points, dtype=np.float64)  # type: ignore[attr-defined]
    points = stored.reshape(len(stored), -1)[:: max(len(stored) // POINTS, 1)][:POINTS]
    labels = (points[:, 0] > 0).astype(np.int64) + 2 * (points[:, 1] > 0)
    if dataset == "digits":
        labels = np.asarray(load_data(dataset).labels) % CLASSES  # type: ignore[attr-defined]
    return (points if case.data is None else case.data(points)), labels


def place_of(case: Case, network: str, dataset: str, repeat: int = 0) -> Path:
    """Where a model is stored, below the folder of all."""
    return Path("models") / (f"{case.name}-{network}-{dataset}" + (f"-seed{repeat}" if repeat else ""))


def train_case(
    case: Case, network: str, datasets: tuple[str, ...], folder: Path, repeat: int = 0
) -> list[dict[str, Any]]:
    """Train one model per data set, store them below `folder`, and return an entry of the index for each.

    Args:
        case: How the models are trained.
        network: Name of the network.
        datasets: Names of the data sets.
        folder: The folder of all models.
        repeat: Number of the repetition; each has seeds of its own.

    Returns:
        The entries.
    """
    own = NETWORKS[network]
    changes = dict(case.changes)
    steps = int(changes.pop("steps", case.factor * own.recipe.steps))
    recipe = replace(own.recipe, steps=steps, **changes)
    arguments = own.arguments | dict(recipe.architecture) | ({"num_classes": CLASSES} if case.labeled else {})
    seeds = [zlib.crc32((f"{case.name}-{name}" + (f"-{repeat}" if repeat else "")).encode()) for name in datasets]
    modules, data, specs = [], [], []
    for name, seed in zip(datasets, seeds, strict=True):
        torch.manual_seed(seed)
        modules.append(build_model(own.name, arguments))
        points, labels = points_of(name, case)
        specs.append(_store_data(folder, f"{name}-{network}", case, points.reshape(-1, *own.shape), labels))
        data.append((torch.as_tensor(points, dtype=torch.float32).reshape(-1, *own.shape), torch.as_tensor(labels)))
    saved_at = [int(fraction * steps) for fraction in case.save_at]
    runs = train(recipe, modules, data, seeds, saved_at)
    entries = []
    for name, spec, seed, module, run in zip(datasets, specs, seeds, modules, runs, strict=True):
        description = Description(
            architecture=Architecture(name=own.name, arguments=arguments),
            times=case.times,
            data=spec,
            step=steps,
            ema_decay=case.ema_decay,
            seed=seed,
        )
        place = place_of(case, network, name, repeat)
        entries.append(
            {
                "id": place.name,
                "kind": case.kind,
                "severity": case.severity,
                "healthy": not case.expected,
                "expected": list(case.expected),
                "split": "held_out" if name in HELD_OUT or own.held_out else "tuning",
                "data": name,
                "network": network,
                "repeat": repeat,
                "steps": steps,
                "seed": seed,
                "options": case.options or {},
                "why": case.why,
                "path": f"{place}/model.safetensors",
                "log": f"{place}/log.csv",
                "series": _store_run(folder / place, module, run, description),
            }
        )
        (folder / place / "entry.json").write_text(json.dumps(entries[-1], indent=1))
    return entries


def _store_data(folder: Path, name: str, case: Case, points: np.ndarray, labels: np.ndarray) -> str:
    """The specification of the stored data."""
    path = folder.resolve() / "data" / f"{name}{'' if case.data is None else '-' + case.name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        np.savez(path, x=points.astype(np.float32), y=labels)
    return str(path) if case.labeled else f"{path}:labels=none"


def _store_run(folder: Path, module: nn.Module, run: Run, description: Description) -> list[str]:
    """Write all checkpoints and the log; return the places of the checkpoints before the last."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss", "grad_norm", "mse"])
        writer.writerows(run.log)
    *earlier, last = run.checkpoints
    for step in run.checkpoints:
        path = folder / ("model.safetensors" if step == last else f"step_{step:05d}.safetensors")
        _store_checkpoint(path, module, *run.checkpoints[step], description.model_copy(update={"step": step}))
    return [f"models/{folder.name}/step_{step:05d}.safetensors" for step in earlier]


def _store_checkpoint(path: Path, module: nn.Module, raw: Params, ema: Params, description: Description) -> None:
    state: dict[str, Tensor] = module.state_dict()
    holder = nn.Module()
    holder.state_dict = lambda: state | raw  # type: ignore[assignment, method-assign]
    save_checkpoint(path, holder, state | ema, description)
