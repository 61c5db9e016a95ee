"""Teachers: the velocity of another checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.flow.conditions import Condition, move_condition, with_labels
from mfdiag.flow.couplings import TeacherVelocity
from mfdiag.flow.data.datasets import Data, conditions_of
from mfdiag.flow.paths import LINEAR, Path, parse_path
from mfdiag.inputs import note_hash
from mfdiag.models.cards.card_files import is_card
from mfdiag.models.checkpoint import load_model, provides_network
from mfdiag.models.path_change import PathChange
from mfdiag.models.prediction import as_average_velocity
from mfdiag.models.wrapper import conditions_taken
from mfdiag.usercode import is_user_code

__all__ = ["load_teacher", "teacher_velocity"]


def load_teacher(
    checkpoint: str,
    model: str | None,
    prediction: str = "u",
    path: Path | None = None,
    data: Data | None = None,
    say: Callable[[str], None] | None = None,
) -> nn.Module:
    """Load a teacher u(x, r, t, labels) with its raw weights.

    Args:
        checkpoint: PATH or PATH@MODEL, where MODEL is code or a model card, as for --model.
        model: What builds the network if PATH has no @MODEL and does not describe its network.
        prediction: What the network predicts if neither its description nor its card says so.
        path: The path whose velocity it gives; None for the path that it was trained on.
        data: The data it is evaluated on, which decide how the user's own network is called; None for its names alone.
        say: Called with a note if the teacher was trained on another path than `path`.

    Returns:
        The teacher as average velocity; at r = t alone, if it was trained on another path.

    Raises:
        InputError: As `load_model` does.
    """
    file, _, own_model = checkpoint.rpartition("@")
    if is_card(own_model) or is_user_code(own_model):
        model = own_model
    else:
        file = checkpoint
        described = provides_network(file)
        if model is None and not described:
            raise InputError(
                f"Expected a teacher that describes its network, but {file} has only weights. Append the code or card "
                f"that builds it: {file}@FILE.py:factory or {file}@CARD.yaml."
            )
        model = None if described else model
    loaded = load_model(file, model=model, weights="raw")
    note_hash("teacher", loaded.path, loaded.sha256)
    loaded = loaded if data is None else loaded.adapted(data)
    if loaded.card is not None:
        prediction, own_path = loaded.card.prediction, loaded.card.convention.path
    elif loaded.description is not None:
        prediction, own_path = loaded.description.prediction, loaded.description.path
    else:
        return as_average_velocity(loaded.module, prediction, path or LINEAR)
    if path is None or path.name == own_path:
        return as_average_velocity(loaded.module, prediction, path or parse_path(own_path))
    own = parse_path(own_path)
    teacher = PathChange(as_average_velocity(loaded.module, prediction, own), own, path)
    if say is not None:
        say(_path_note(file, teacher))
    return teacher


def _path_note(file: str, teacher: PathChange) -> str:
    """How the velocity of a teacher of another path is used, and where its own path ends."""
    low, high = teacher.range
    note = (
        f"{file} was trained on the path {teacher.own.name}: its velocity is computed where the ratio sigma / alpha is "
        f"that of the path {teacher.path.name}, and changed to that path."
    )
    if (low, high) == (0.0, 1.0):
        return note
    return (
        f"{note} The path {teacher.own.name} covers t from {low:.4g} to {high:.6g}; below, the teacher's estimate of "
        "the noise at the lower end is used, and above, that of the data at the upper end."
    )


class _TeacherVelocity:
    """v(x, t, condition) = u(x, t, t, condition) of a network, computed in its own precision.

    Attributes:
        condition_names: Names of the arrays beside the samples that it takes.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self.condition_names = network, conditions_taken(network)
        self._dtype = next((p.dtype for p in network.parameters()), torch.float64)
        self._conditional = bool(getattr(network, "num_classes", 0))

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The velocity [n, *shape] at x [n, *shape], t [n], in the dtype and on the device of x."""
        t = t.to(self._dtype)
        own = condition if self._conditional else with_labels(condition, None)
        return self.network(x.to(self._dtype), t, t, move_condition(own, t)).to(x)


def teacher_velocity(checkpoint: str, model: str | None = None, data: Data | None = None) -> TeacherVelocity:
    """The velocity v(x, t, condition) = u(x, t, t, condition) of a checkpoint, as `load_teacher` loads it.

    Args:
        checkpoint: As in `load_teacher`.
        model: As in `load_teacher`.
        data: As in `load_teacher`.

    Returns:
        The velocity. It is computed on the CPU in the checkpoint's precision; results have the dtype and device of
        x [n, *shape]. Its `condition_names` are the arrays of the data that it takes.

    Raises:
        InputError: If the data lack an array that the teacher takes, and as `load_teacher` does.
    """
    velocity = _TeacherVelocity(load_teacher(checkpoint, model, data=data))
    if missing := [name for name in velocity.condition_names if data is None or name not in conditions_of(data)]:
        raise InputError(
            f"Expected data with the array {missing[0]!r}, because the teacher {checkpoint} takes it, but "
            f"{'no data were given' if data is None else f'{data.name} has none'}; pass --data with it, or store the "
            "pairs with it and pass --coupling pairs:FILE."
        )
    return velocity
