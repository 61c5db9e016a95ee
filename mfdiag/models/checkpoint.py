"""Saving and loading checkpoints: this project's self-describing safetensors files, and files of other projects."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfdiag.errors import InputError
from mfdiag.models.cards.card import Card
from mfdiag.models.cards.card_files import is_card, load_card
from mfdiag.models.description import METADATA_KEY, Description, parse_description
from mfdiag.models.factory import call_factory
from mfdiag.models.formats.containers import (
    StateDict,
    read_container,
    training_step,
    weight_sets,
)
from mfdiag.models.networks.registry import build_model
from mfdiag.models.weights import brief, filled, find_weights, select_weights
from mfdiag.storage import atomic_write, sha256_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LoadedModel", "bundled", "load_model", "makes_its_network", "save_checkpoint"]


def bundled() -> Path:
    """The checkpoint shipped with the package: an MLP trained on eight Gaussians with MeanFlow's original loss."""
    return Path(str(resources.files("mfdiag").joinpath("data", "eight_gaussians.safetensors")))


def save_checkpoint(
    path: str | os.PathLike[str], module: nn.Module, ema_state: StateDict | None, description: Description
) -> None:
    """Write the module's weights as `raw.*`, `ema_state` (the same names) as `ema.*`, and the description, atomically.

    The same weights and description give the same bytes.
    """
    from safetensors.torch import save

    sets = {"raw": module.state_dict(), "ema": ema_state or {}}
    # cloned, because safetensors refuses tensors that share memory
    tensors = {f"{key}.{name}": v.detach().cpu().clone().contiguous() for key in sets for name, v in sets[key].items()}
    with atomic_write(Path(path)) as temporary:
        # not save_file, which denies the file to every other user
        temporary.write_bytes(save(tensors, metadata={METADATA_KEY: description.model_dump_json()}))


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode with its parameters loaded and frozen, and where it came from.

    `state` holds every set of weights in the file by its key (dotted where nested, "" for a bare state dict);
    `description` is None for files of other projects, `card` for networks made without one, `step` the training step
    where the file tells it.
    """

    module: nn.Module
    state: dict[str, StateDict]
    description: Description | None
    sha256: str
    step: int | None
    path: Path
    card: Card | None = None

    def has_weights(self, key: str) -> bool:
        """Whether the file holds the weights that `--weights KEY` asks for."""
        return find_weights(self.state, key, self.card) is not None

    def with_weights(self, key: str) -> nn.Module:
        """A fresh module like `module` with another set of weights. Raises InputError as `load_model` does."""
        return filled(copy.deepcopy(self.module), self.state, key, self.path, self.card)


def load_model(path: str | os.PathLike[str], *, model: str | None = None, weights: str = "raw") -> LoadedModel:
    """Load a network from a checkpoint; nothing in the file is run.

    `model` makes the network for files that do not describe it (and overrides the description of those that do): code,
    as `FILE.py:factory` or `pkg.module:factory`, or a model card. `weights` is "raw", "ema" or the key of a state
    dict, dotted where nested; a key may end in a prefix of tensor names (`model.net_ema`).

    Raises InputError for a file that is missing, empty, damaged, or holds code; for weights that are absent, not
    finite, or do not fit the network; for an unknown architecture, a card that is wrong and a factory that fails.
    """
    card = load_card(model) if model is not None and is_card(model) else None
    file = read_container(path, load=True)
    path = file.files[0]
    text = file.metadata.get(METADATA_KEY)
    description = None if text is None or card is not None else parse_description(text, path)
    state = weight_sets(file.tree, described=description is not None)
    module: nn.Module
    if card is not None:
        module = _adapted(card, file.tree)
    elif model is not None:
        module = call_factory(model)
    elif description is not None:
        module = build_model(description.architecture.name, description.architecture.arguments)
    elif file.program is not None:
        from mfdiag.models.formats.program import ExportedNetwork

        module = ExportedNetwork(file.program, file.tree)
    else:
        chosen = select_weights(state, weights, path)
        shapes = [f"{name} {list(value.shape)}" for name, value in chosen.items()]
        raise InputError(
            f"{path} does not describe its network, so pass --model FILE.py:factory that builds it, or a model card; "
            f"the chosen weights are {len(chosen)} tensors: {brief(shapes)}."
        )
    step = description.step if description else training_step(file.tree)
    module = filled(module, state, weights, path, card)
    return LoadedModel(module, state, description, sha256_of(*file.files), step, path, card)


def makes_its_network(path: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint describes its network or holds it. Raises InputError for a file that cannot be read."""
    file = read_container(path, load=False)
    return METADATA_KEY in file.metadata or file.program is not None


def _adapted(card: Card, tree: Mapping[Any, Any]) -> nn.Module:
    """The card's network, with the constructor arguments that the file tells."""
    from mfdiag.models.cards.adapter import Adapted

    told = {name: _told(tree, place) for name, place in card.network.arguments_from.items()}
    arguments = card.network.arguments | {name: value for name, value in told.items() if value is not None}
    return Adapted(call_factory(card.factory, f"the network of {card.name}", arguments), card)


def _told(tree: Any, place: str) -> Any:
    """The value at a dotted place in mappings and namespaces, divided if it ends in `/ number`; None if not there."""
    place, _, divisor = (part.strip() for part in place.partition("/"))
    for name in place.split("."):
        inside = tree if isinstance(tree, Mapping) else getattr(tree, "__dict__", {})
        tree = inside.get(name)
    return tree // int(divisor) if divisor and isinstance(tree, int) else tree
