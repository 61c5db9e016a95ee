"""Teachers: the velocity of another checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.flow.paths import LINEAR, parse_path
from mfdiag.models.checkpoint import load_model
from mfdiag.models.prediction import as_average_velocity

__all__ = ["load_teacher", "teacher_velocity"]


def load_teacher(checkpoint: str, model: str | None, prediction: str = "u", path: str | None = None) -> nn.Module:
    """The network u(x, r, t, labels) of a checkpoint's raw weights.

    `model` builds it where the file does not describe itself, and `prediction` then says what it predicts. `path` is
    the path it must have been trained on, by name; None takes any. Raises InputError where it was trained on another.
    """
    loaded = load_model(checkpoint, factory=model, weights="raw")
    if loaded.description is None:
        return as_average_velocity(loaded.module, prediction, parse_path(path or LINEAR.name))
    own = loaded.description.path
    if path not in (None, own):
        raise InputError(
            f"The teacher {checkpoint} was trained on the path {own}, whose velocity is not that of the path {path}: "
            "choose a teacher of the same path."
        )
    return as_average_velocity(loaded.module, loaded.description.prediction, parse_path(own))


def teacher_velocity(checkpoint: str, model: str | None = None) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """v(x, t, labels) = u(x, t, t, labels) of a checkpoint, on the CPU and in its own precision, for tensors of any."""
    network = load_teacher(checkpoint, model)
    dtype = next((p.dtype for p in network.parameters()), torch.float64)
    conditional = bool(getattr(network, "num_classes", 0))

    def velocity(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        t = t.to(dtype)
        return network(x.to(dtype), t, t, labels if conditional else None).to(x)

    return velocity
