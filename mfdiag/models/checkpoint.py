"""Saving and loading checkpoints: the self-describing safetensors files of mfdiag, and files of other projects."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfdiag.errors import InputError, abbreviated
from mfdiag.models.cards.card import Card
from mfdiag.models.cards.card_files import is_card, load_card
from mfdiag.models.description import METADATA_KEY, Description, parse_description
from mfdiag.models.factory import call_factory
from mfdiag.models.formats.average_counters import never_updated
from mfdiag.models.formats.containers import (
    Container,
    StateDict,
    read_container,
    training_step,
    weight_sets,
)
from mfdiag.models.formats.weight_names import place_of, split_copies
from mfdiag.models.networks.registry import Bounds, build_model
from mfdiag.models.weights import (
    find_weights,
    fitted_weights,
    load_weights,
    select_weights,
    weight_notes,
)
from mfdiag.storage import atomic_write, sha256_of

if TYPE_CHECKING:
    from torch import nn

    from mfdiag.flow.data.datasets import Data

__all__ = ["LoadedModel", "bundled", "load_model", "provides_network", "save_checkpoint"]


def bundled() -> Path:
    """The checkpoint that ships with mfdiag: an MLP trained on eight Gaussians with MeanFlow's original loss."""
    return Path(str(resources.files("mfdiag").joinpath("data", "eight_gaussians.safetensors")))


def save_checkpoint(
    path: str | os.PathLike[str], module: nn.Module, ema_state: StateDict | None, description: Description
) -> None:
    """Write a checkpoint that describes itself, as one safetensors file.

    The file is written atomically: a reader sees the old file or the new one. The same weights and description give
    the same bytes.

    Args:
        path: The file; its folder is created.
        module: The network, whose weights are stored as `raw.*`.
        ema_state: The exponential moving average of the weights, under the same names; it is stored as `ema.*`.
        description: Architecture, path, times, data, step and seed.

    Raises:
        InputError: If the file cannot be written.
    """
    from safetensors.torch import save

    sets = {"raw": module.state_dict(), "ema": ema_state or {}}
    # clones, because safetensors refuses tensors that share memory
    tensors = {f"{key}.{name}": v.detach().cpu().clone().contiguous() for key in sets for name, v in sets[key].items()}
    with atomic_write(Path(path)) as temporary:
        # not save_file, whose files no other user can read
        temporary.write_bytes(save(tensors, metadata={METADATA_KEY: description.model_dump_json()}))


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode, with its parameters loaded and frozen, and the file it came from.

    `state` holds every set of weights in the file by its key, which is dotted where nested and "" for a bare state
    dict. `description` is None for files of other projects, `card` is None for networks loaded without one, and `step`
    is the training step, or None if the file does not record it. `notes` are sentences about what loading changed.
    `unusable` are the averaged weights, by their key, that do not fit the network or are not finite.
    `built_by_code` is whether the user's code built the network without a card. `weights` is the set that was asked
    for.
    """

    module: nn.Module
    state: dict[str, StateDict]
    description: Description | None
    sha256: str
    step: int | None
    path: Path
    card: Card | None = None
    notes: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()
    built_by_code: bool = False
    weights: str = "raw"

    @property
    def possible_conditions(self) -> tuple[str, ...]:
        """Names of the arrays beside the samples that the network takes, or may take."""
        from mfdiag.models.call_signature import possible_conditions
        from mfdiag.models.wrapper import unwrapped

        if self.card is not None:
            return self.card.condition_names
        return possible_conditions(unwrapped(self.module).forward) if self.built_by_code else ()

    def has_weights(self, key: str) -> bool:
        """Whether the file holds weights that `--weights KEY` selects, and they can be used."""
        return key not in self.unusable and find_weights(self.state, key, self.card) is not None

    def with_weights(self, key: str) -> nn.Module:
        """A copy of `module` with another set of weights. Raises InputError as `load_model` does."""
        from mfdiag.models.precision import copy_network

        return load_weights(copy_network(self.module), self.state, key, self.path, self.card)

    def adapted(self, data: Data) -> LoadedModel:
        """With the network called as samples of `data` show to be right, if the user's code built it.

        Raises InputError as `adapt_call` does.
        """
        from mfdiag.models.call_adapter import adapt_to

        return replace(self, module=adapt_to(self.module, data)) if self.built_by_code else self


def load_model(path: str | os.PathLike[str], *, model: str | None = None, weights: str = "raw") -> LoadedModel:
    """Load a network from a checkpoint. No code in the file is run.

    Args:
        path: The checkpoint.
        model: What builds the network: code as `FILE.py:factory` or `pkg.module:factory`, or a model card. It is
            needed for files that do not describe their network, and overrides the description of those that do.
        weights: "raw", "ema", or the key of a state dict, dotted where nested. A key may end in a prefix of tensor
            names (`model.net_ema`).

    Returns:
        The network u(x, r, t, y), or what the card's network predicts, and what the file says about it.

    Raises:
        InputError: If the file is missing, empty or damaged, or holds code; if the weights are absent, not finite or
            do not fit the network; if the architecture is unknown, the card is wrong or the factory fails.
    """
    from mfdiag.models.wrapper import unwrapped  # here, since it imports torch

    card = load_card(model) if model is not None and is_card(model) else None
    file = read_container(path, load=True)
    path = file.path
    text = file.metadata.get(METADATA_KEY)
    description = None if text is None or card is not None else parse_description(text, path)
    state = weight_sets(file.tree, described=description is not None)
    module: nn.Module
    if card is not None:
        module = _from_card(card, file.tree)
    elif model is not None:
        from mfdiag.models.call_adapter import adapt_call

        module = adapt_call(call_factory(model))
    elif description is not None:
        architecture = description.architecture
        module = build_model(architecture.name, architecture.arguments, _bounds_of(state))
    elif file.program is not None:
        from mfdiag.models.formats.program import ExportedNetwork

        module = ExportedNetwork(file.program, file.tree)
    else:
        tensors = select_weights(state, weights, path)
        shapes = [f"{name} {list(value.shape)}" for name, value in tensors.items()]
        raise InputError(
            f"Expected a file that describes its network, but {path} has only weights, {len(tensors)} tensors: "
            f"{abbreviated(shapes)}; pass --model FILE.py:factory that builds the network, or a model card."
        )
    step = description.step if description else training_step(file.tree)
    module = load_weights(module, state, weights, path, card)
    by_code = model is not None and card is None
    network = unwrapped(module)
    notes = [*file.notes, *weight_notes(network, state, weights, path, card)]
    unusable = _unusable_averages(file, state, weights, network, card, notes)
    sha256 = sha256_of(*file.files)
    return LoadedModel(module, state, description, sha256, step, path, card, tuple(notes), unusable, by_code, weights)


def _bounds_of(state: Mapping[str, StateDict]) -> Bounds:
    """The size of a network whose weights are in a file."""
    sets = [weights.values() for weights in state.values()]
    numbers = (sum(tensor.numel() for tensor in tensors) for tensors in sets)
    return Bounds(max(map(len, sets), default=0), max(numbers, default=0))


def _unusable_averages(
    file: Container, state: dict[str, StateDict], weights: str, network: nn.Module, card: Card | None, notes: list[str]
) -> tuple[str, ...]:
    """The averaged weights that were not asked for and should not stand in for an average; `notes` receives why."""
    places = split_copies(state)
    place = place_of(places, "ema") if card is None else card.weights.ema
    selected = place if weights == "ema" else weights
    still = never_updated([place for place in (place, selected) if place is not None], file.tree, file.config)
    if weights != "raw" and selected in still:
        notes.append(f"The average {selected} was never updated ({still[selected]}); it holds the initial weights.")
    if weights != "raw" or find_weights(state, "ema", card) is None:
        return ()
    if place in still:
        notes.append(
            f"Measured without the averaged weights {place}: they were never updated ({still[place]}), so they are the "
            "initial weights."
        )
        return ("ema",)
    try:
        fitted_weights(network, state, "ema", file.path, card)
    except InputError as error:
        notes.append(f"Measured without the averaged weights. {error}")
        return ("ema",)
    return ()


def provides_network(path: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint describes its network or contains it. Raises InputError for a file that cannot be read."""
    file = read_container(path, load=False)
    return METADATA_KEY in file.metadata or file.program is not None


def _from_card(card: Card, tree: Mapping[Any, Any]) -> nn.Module:
    """The card's network, with the constructor arguments that the file records."""
    from mfdiag.models.cards.adapter import CardAdapter

    recorded = {name: _value_at(tree, place) for name, place in card.network.arguments_from.items()}
    arguments = card.network.arguments | {name: value for name, value in recorded.items() if value is not None}
    return CardAdapter(call_factory(card.factory, f"the network of {card.name}", arguments), card)


def _value_at(tree: Any, place: str) -> Any:
    """The value at a dotted place of mappings and namespaces, or None; a place `NAME / number` divides it."""
    place, _, divisor = (part.strip() for part in place.partition("/"))
    for name in place.split("."):
        entries = tree if isinstance(tree, Mapping) else getattr(tree, "__dict__", {})
        tree = entries.get(name)
    return tree // int(divisor) if divisor and isinstance(tree, int) else tree
