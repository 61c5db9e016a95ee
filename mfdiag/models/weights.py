"""Sets of weights: selecting one from a file, as --weights or a model card names it, and loading it into a network."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from mfdiag.errors import InputError
from mfdiag.models.cards.card import Card
from mfdiag.models.formats.containers import StateDict, tensors_at, tensors_below

if TYPE_CHECKING:
    from torch import nn

__all__ = ["abbreviated", "find_weights", "load_weights", "select_weights"]

_ALIASES = {  # names that training scripts give these sets
    "raw": ("raw", "", "model", "net", "state_dict"),
    "ema": ("ema", "model_ema", "ema_model", "ema_state_dict", "net_ema"),
}
_WRAPPERS = {"module", "_orig_mod"}  # prefixes left by DistributedDataParallel and torch.compile


def find_weights(state: Mapping[str, StateDict], key: str, card: Card | None = None) -> StateDict | None:
    """The set of weights that `--weights KEY` selects, or None.

    Args:
        state: Every set of weights of the file, by its dotted place.
        key: "raw", "ema", or a dotted place.
        card: The model card; it says where "raw" and "ema" are.

    Returns:
        Tensors by name, or None if the file or the card has no such weights.
    """
    if card is not None and key in ("raw", "ema"):
        place = getattr(card.weights, key)
        return None if place is None else tensors_at(state, place)
    names = _ALIASES.get(key, (key,))
    for name in names:
        below = [place for place in state if name and place.startswith(f"{name}.")]
        if name in state:
            return state[name]
        if len(below) == 1:
            return state[below[0]]
    return next((tensors for name in filter(None, names) if (tensors := tensors_at(state, name))), None)


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
    tensors = find_weights(state, key, card)
    if tensors is None:
        if not state:
            raise InputError(
                f"Expected weights {key!r} in {path}, but it holds no state dict. Pass another checkpoint."
            )
        known = ", ".join(repr(name) if name else "'raw' (a bare state dict)" for name in state)
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
    tensors = select_weights(state, key, path, card)
    if card is not None and all(name.isdecimal() for name in tensors):
        tensors = select_weights(state, "raw", path, card) | _named_by_order(tensors, network)
    tensors = _without_prefixes(tensors, own.keys(), () if card is None else card.weights.strip)
    absent, unused = ((), ()) if card is None else (card.weights.absent, card.weights.unused)
    missing = [name for name in own if name not in tensors and not _matches(name, absent)]
    unexpected = [name for name in tensors if name not in own and not _matches(name, unused)]
    wrong = [
        f"{name} {list(tensors[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", wrong)]
    summary = "; ".join(f"{len(names)} {problem}: {abbreviated(names)}" for problem, names in problems if names)
    if summary:
        remedy = "the --model that was trained" if card is None else f"another card, or correct {card.name}"
        raise InputError(
            f"Expected {path} to hold weights that fit {type(network).__name__}, but they do not ({summary}); "
            f"pass {remedy}, or other --weights."
        )
    parameters = {name: tensors[name] for name in own if name in tensors}
    _check_finite(parameters, path)
    network.load_state_dict(own | parameters)
    return module.eval().requires_grad_(False)


def _named_by_order(tensors: StateDict, network: nn.Module) -> StateDict:
    """Tensors named 0, 1, ... under the names of the network's parameters, in the same order."""
    names = [name for name, _ in network.named_parameters()]
    values = [tensors[number] for number in sorted(tensors, key=int)]
    if len(names) != len(values):
        raise InputError(
            f"Expected a numbered tensor for each of the {len(names)} trained parameters of {type(network).__name__}, "
            f"but there are {len(values)}; correct network or weights in the card."
        )
    return dict(zip(names, values, strict=True))


def _without_prefixes(tensors: StateDict, names: Collection[str], strip: Sequence[str]) -> StateDict:
    """The tensors without the prefixes in `strip`, and without wrappers' prefixes that keep them from `names`."""
    for prefix in strip:
        tensors = {name.removeprefix(f"{prefix.removesuffix('.')}."): value for name, value in tensors.items()}
    while tensors.keys().isdisjoint(names):
        wrapper = next(iter(tensors)).partition(".")[0]
        if wrapper not in _WRAPPERS or not all(name.startswith(f"{wrapper}.") for name in tensors):
            break
        tensors = tensors_below(tensors, wrapper)
    return tensors


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_finite(tensors: StateDict, path: Path) -> None:
    counts = {name: int((~value.isfinite()).sum()) for name, value in tensors.items()}
    bad = [f"{name} ({count} of {tensors[name].numel()})" for name, count in counts.items() if count]
    if bad:
        raise InputError(
            f"Expected finite weights, but {path} has NaN or infinite values in {len(bad)} of {len(tensors)} tensors: "
            f"{abbreviated(bad)}; use an earlier checkpoint."
        )


def abbreviated(names: list[str], count: int = 3) -> str:
    """The first `count` names, followed by dots if there are more."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
