"""Teachers: the velocity of another checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.flow.paths import LINEAR, parse_path
from mfdiag.models.cards.card_files import is_card
from mfdiag.models.checkpoint import load_model, makes_its_network
from mfdiag.models.prediction import as_average_velocity
from mfdiag.usercode import is_user_code

__all__ = ["load_teacher", "teacher_velocity"]


def load_teacher(checkpoint: str, model: str | None, prediction: str = "u", path: str | None = None) -> nn.Module:
    """The network u(x, r, t, labels) of a checkpoint's raw weights, named PATH or PATH@MODEL.

    MODEL builds it, else `model` where the file does not describe itself: code or a model card, as for --model. Where
    that is code, `prediction` says what it predicts. `path` is the path it must have been trained on, by name; None
    takes any. Raises InputError where it was trained on another.
    """
    place, _, own_model = checkpoint.rpartition("@")
    if is_card(own_model) or is_user_code(own_model):
        model = own_model
    else:
        place = checkpoint
        model = None if makes_its_network(place) else model
    loaded = load_model(place, model=model, weights="raw")
    if loaded.card is not None:
        prediction, own = loaded.card.prediction, loaded.card.convention.path
    elif loaded.description is not None:
        prediction, own = loaded.description.prediction, loaded.description.path
    else:
        return as_average_velocity(loaded.module, prediction, parse_path(path or LINEAR.name))
    if path not in (None, own):
        raise InputError(
            f"The teacher {place} was trained on the path {own}, whose velocity is not that of the path {path}: "
            "choose a teacher of the same path."
        )
    return as_average_velocity(loaded.module, prediction, parse_path(own))


def teacher_velocity(checkpoint: str, model: str | None = None) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """v(x, t, labels) = u(x, t, t, labels) of a checkpoint, on the CPU and in its own precision, for tensors of any."""
    network = load_teacher(checkpoint, model)
    dtype = next((p.dtype for p in network.parameters()), torch.float64)
    conditional = bool(getattr(network, "num_classes", 0))

    def velocity(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        t = t.to(dtype)
        return network(x.to(dtype), t, t, labels if conditional else None).to(x)

    return velocity
