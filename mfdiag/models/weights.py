"""Sets of weights: selecting one from a file, as --weights or a model card names it, and loading it into a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from mfdiag.errors import InputError, abbreviated
from mfdiag.models.cards.card import Card
from mfdiag.models.factory import PARAMETER_ORDER
from mfdiag.models.formats.containers import StateDict, tensors_at
from mfdiag.models.formats.weight_names import NamedWeights, is_average, place_of, split_copies, under_names
from mfdiag.models.post_hoc_ema import Synthesis, is_request, synthesis
from mfdiag.models.weight_rules import apply_rules

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["NonfiniteWeightsError", "find_weights", "fitted_weights", "load_weights", "select_weights", "weight_notes"]

_SHOWN, _SHOWN_BY_RULES = 3, 20  # names that an error lists; rules are corrected name by name
_MAX_SETS = 12  # sets of weights that an error lists


def find_weights(state: Mapping[str, StateDict], key: str, card: Card | None = None) -> StateDict | None:
    """The set of weights that `--weights KEY` selects, or None.

    Args:
        state: Every set of weights of the file, by its dotted place.
        key: "raw", "ema", a dotted place, or the width of a post-hoc average as ema:0.1.
        card: The model card; it says where "raw" and "ema" are.

    Returns:
        Tensors by name, or None if the file or the card has no such weights.
    """
    if is_request(key):
        return synthesis(state, key, Path("the file")).tensors()
    places = split_copies(state)
    if key in ("raw", "ema"):
        place = _first(place_of(places, key), place_of(state, key)) if card is None else getattr(card.weights, key)
        if place is None:
            return None
        return tensors_at(places, place) or tensors_at(state, place)
    return tensors_at(state, key) or tensors_at(places, key) or _below(places, key)


def _first(place: str | None, other: str | None) -> str | None:
    return other if place is None else place


def _below(places: Mapping[str, StateDict], name: str) -> StateDict | None:
    """The only set below a place: `ema` for `ema.shadow`."""
    below = [place for place in places if place.startswith(f"{name}.")]
    return places[below[0]] if len(below) == 1 else None


def select_weights(state: Mapping[str, StateDict], key: str, path: Path, card: Card | None = None) -> StateDict:
    """The set of weights that `--weights KEY` selects.

    Args:
        state: Every set of weights of the file, by its dotted place.
        key: "raw", "ema", or a dotted place.
        path: The file, for errors.
        card: The model card; it says where "raw" and "ema" are.

    Returns:
        Tensors by name.

    Raises:
        InputError: If the file or the card has no such weights.
    """
    tensors = synthesis(state, key, path).tensors() if is_request(key) else find_weights(state, key, card)
    if tensors is None:
        if not split_copies(state):
            raise InputError(
                f"Expected weights {key!r} in {path}, but it holds no state dict. Pass another checkpoint."
            )
        known = abbreviated([*map(_quoted, split_copies(state).items())], _MAX_SETS)
        place = None if card is None or key not in ("raw", "ema") else getattr(card.weights, key)
        where = "" if place is None else f" at {place!r}"
        raise InputError(f"Expected weights {key!r}{where} in {path}, but it has {known}; pass one of these.")
    return tensors


def load_weights(
    module: nn.Module, state: Mapping[str, StateDict], key: str, path: Path, card: Card | None = None
) -> nn.Module:
    """Load a set of weights into a network, freeze it, and put it into eval mode.

    Args:
        module: The network, or an adapter around it. It is changed in place.
        state: Every set of weights of the file, by its dotted place.
        key: "raw", "ema", or a dotted place.
        path: The file, for errors.
        card: The model card; it says where the weights are and which tensors may be absent or unused.

    Returns:
        `module` itself.

    Raises:
        InputError: If the weights are absent, do not fit the network, or are not finite.
    """
    from mfdiag.models.wrapper import unwrapped  # here, since it imports torch

    network = unwrapped(module)
    own = network.state_dict()
    parameters = fitted_weights(network, state, key, path, card)
    network.load_state_dict(own | {name: value.to(own[name].dtype) for name, value in parameters.items()})
    return module.eval().requires_grad_(False)


def fitted_weights(
    network: nn.Module, state: Mapping[str, StateDict], key: str, path: Path, card: Card | None = None
) -> StateDict:
    """A set of weights under the names of a network, with the shapes of its tensors and the dtypes of the file.

    Args:
        network: The network, without a `CardAdapter`.
        state: Every set of weights of the file, by its dotted place.
        key: "raw", "ema", or a dotted place.
        path: The file, for errors.
        card: The model card; it says where the weights are and which tensors may be absent or unused.

    Returns:
        Tensors by name. Buffers that an average lacks are those of the raw weights.

    Raises:
        InputError: If the weights are absent, do not fit the network, or are not finite.
    """
    own = network.state_dict()
    tensors = select_weights(state, key, path, card)
    tensors = _completed(_named(tensors, network, path, card), network, state, key, path, card)
    absent, unused = ((), ()) if card is None else (card.weights.absent, card.weights.unused)
    missing = [name for name in own if name not in tensors and not _matches(name, absent)]
    unexpected = [name for name in tensors if name not in own and not _matches(name, unused)]
    pairs = {name: (tensors[name], own[name]) for name in own if name in tensors}
    wrong = [
        f"{name} {list(value.shape)} instead of {list(expected.shape)}"
        for name, (value, expected) in pairs.items()
        if value.shape != expected.shape
    ]
    kinds = [
        f"{name} {_dtype(value)} instead of {_dtype(expected)}"
        for name, (value, expected) in pairs.items()
        if not _castable(value, expected)
    ]
    problems = [
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", wrong),
        ("of another kind of number", kinds),
    ]
    shown = _SHOWN_BY_RULES if card is not None and card.weights.rules else _SHOWN
    summary = "; ".join(f"{len(names)} {problem}: {abbreviated(names, shown)}" for problem, names in problems if names)
    buffers = {name for name, _ in network.named_buffers()}
    if summary:
        remedy = "the --model that was trained" if card is None else f"another card, or correct {card.name}"
        if missing and not (unexpected or wrong or kinds) and buffers.issuperset(missing):
            fill = ", ".join(missing[:_SHOWN])
            remedy += f"; or, if the network sets these buffers itself, a card with `weights: {{absent: [{fill}]}}`"
        raise InputError(
            f"Expected {path} to hold weights that fit {type(network).__name__}, but they do not ({summary}); "
            f"pass {remedy}, or other --weights."
        )
    parameters = {name: value for name, (value, _) in pairs.items()}
    _check_finite(parameters, path, masks=buffers)
    return parameters


def weight_notes(
    network: nn.Module, state: Mapping[str, StateDict], key: str, path: Path, card: Card | None = None
) -> list[str]:
    """Sentences about what loading a set of weights changes: dtypes that are cast, and modules that are not used.

    Args:
        network: The network, without a `CardAdapter`, with its weights loaded.
        state: Every set of weights of the file, by its dotted place.
        key: "raw", "ema", or a dotted place.
        path: The file.
        card: The model card.

    Returns:
        No sentence, or one for each change.
    """
    own = network.state_dict()
    tensors = select_weights(state, key, path, card)
    notes = [_synthesis_note(synthesis(state, key, path), path)] if is_request(key) else []
    named = under_names(_by_card(tensors, network, card), own)
    if isinstance(named, NamedWeights) and named.ignored:
        modules = list(dict.fromkeys(name.partition(".")[0] for name in named.ignored))
        notes.append(
            f"{path} also holds weights of {abbreviated(modules)}, which {type(network).__name__} does not have; "
            "they are not used."
        )
    if key == "raw" and card is None and len(averages := _undecided_averages(state)) > 1:
        notes.append(
            f"{path} holds {len(averages)} averages, {abbreviated(averages)}, and no name says which one belongs to "
            f"the weights, so none is used; pass --model a card with `weights: {{ema: {averages[0]}}}`, or measure one "
            "of them by --weights."
        )
    values = named.tensors if isinstance(named, NamedWeights) else {}
    casts = Counter(
        (_dtype(value), _dtype(own[name]))
        for name, value in values.items()
        if name in own and value.dtype != own[name].dtype
    )
    for (stored, used), count in casts.items():
        notes.append(f"{path} stores {count} of {len(own)} tensors as {stored}; they are cast to {used}.")
    return notes


def _undecided_averages(state: Mapping[str, StateDict]) -> list[str]:
    """The averages of a file that does not say which one is meant; none where it does."""
    places = split_copies(state)
    if place_of(places, "ema") is not None or place_of(state, "ema") is not None:
        return []
    return [place for place in places if is_average(place, places)]


def _synthesis_note(average: Synthesis, path: Path) -> str:
    if len(average.sets) == 1:
        return f"The average of width {average.width:g} is stored in {path}."
    return (
        f"The average of width {average.width:g} is combined from {len(average.sets)} averages in {path}; its profile "
        f"differs from the exact one by {average.error:.1%} of its norm."
    )


def _named(tensors: StateDict, network: nn.Module, path: Path, card: Card | None) -> StateDict:
    """The tensors under the network's names: lists by their order, others without prefixes and wrappers."""
    if all(name.isdecimal() for name in tensors):
        own = network.state_dict()
        if not tensors.keys() & own.keys():
            return _named_by_order(tensors, network)
    named = under_names(_by_card(tensors, network, card), network.state_dict())
    if isinstance(named, NamedWeights):
        return named.tensors
    raise InputError(
        f"Expected one copy of {type(network).__name__} in the weights, but {path} holds {len(named)}: "
        f"{abbreviated(named)}; pass one of these as --weights, after the name of its set."
    )


def _by_card(tensors: StateDict, network: nn.Module, card: Card | None) -> StateDict:
    """The tensors without the prefixes that the card strips, with the names and axes that its rules give."""
    if card is None:
        return tensors
    for prefix in card.weights.strip:
        tensors = {name.removeprefix(f"{prefix.removesuffix('.')}."): value for name, value in tensors.items()}
    return apply_rules(tensors, card.weights, network, card.name)


def _completed(
    tensors: StateDict, network: nn.Module, state: Mapping[str, StateDict], key: str, path: Path, card: Card | None
) -> StateDict:
    """An average with the buffers of the raw weights that it lacks; many averages hold only trained parameters."""
    own = network.state_dict()
    absent = [name for name in own if name not in tensors]
    if key == "raw" or not absent or own.keys().isdisjoint(tensors):
        return tensors
    raw = find_weights(state, "raw", card)
    if raw is None:
        return tensors
    fixed = {name for name, _ in network.named_buffers()}
    values = _named(raw, network, path, card)
    return dict(tensors) | {name: values[name] for name in absent if name in fixed and name in values}


def _named_by_order(tensors: StateDict, network: nn.Module) -> StateDict:
    """Tensors named 0, 1, ... under the names of the trained parameters, of all parameters, or of the state dict."""
    own = network.state_dict()
    trained = [name for name, _ in network.named_parameters()]
    everything = network.__dict__.get(PARAMETER_ORDER, trained)
    values = [tensors[number] for number in sorted(tensors, key=int)]
    for names in (trained, everything, *([list(own)] if everything == trained else [])):  # frozen ones moved in `own`
        if [own[name].shape for name in names] == [value.shape for value in values]:
            return dict(zip(names, values, strict=True))
    shapes = " of other shapes" if len(values) == len(trained) else ""
    raise InputError(
        f"Expected a tensor for each of the {len(trained)} trained parameters of {type(network).__name__}, in their "
        f"order and with their shapes, but there are {len(values)}{shapes}; "
        "correct the network, or pass other --weights."
    )


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _castable(value: Tensor, own: Tensor) -> bool:
    """Whether a cast keeps what the number means: integers are quantized weights, and a real part is not the whole."""
    if own.dtype.is_floating_point:
        return value.dtype.is_floating_point
    return not value.dtype.is_complex or own.dtype.is_complex


def _quoted(entry: tuple[str, StateDict]) -> str:
    name, tensors = entry
    if name:
        return repr(name)
    return "'ema' (averaged weights)" if "n_averaged" in tensors else "'raw' (a bare state dict)"


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class NonfiniteWeightsError(InputError):
    """Weights that are NaN or infinite.

    Args:
        names: Names of the tensors.
        message: The sentence for the user.
    """

    def __init__(self, names: Sequence[str], message: str) -> None:
        super().__init__(message)
        self.names = names


def _check_finite(tensors: StateDict, path: Path, masks: Container[str]) -> None:
    """InputError for NaN or infinity. Buffers, which may be `masks`, may hold -inf, as those of attention do."""
    # float8 has no isfinite
    floats = {name: value.float() if value.dtype.itemsize == 1 else value for name, value in tensors.items()}
    finite = {
        name: value.isfinite() | value.isneginf() if name in masks and value.is_floating_point() else value.isfinite()
        for name, value in floats.items()
    }
    counts = {name: int((~entries).sum()) for name, entries in finite.items()}
    bad = [f"{name} ({count} of {tensors[name].numel()})" for name, count in counts.items() if count]
    if bad:
        raise NonfiniteWeightsError(
            [name for name, count in counts.items() if count],
            f"Expected finite weights, but {path} has NaN or infinite values in {len(bad)} of {len(tensors)} tensors: "
            f"{abbreviated(bad)}; use an earlier checkpoint.",
        )
