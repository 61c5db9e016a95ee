"""Weights found in a file and put into a network, as a user or a model card names them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from mfdiag.errors import InputError
from mfdiag.models.cards.card import Card
from mfdiag.models.formats.containers import StateDict, subset

if TYPE_CHECKING:
    from torch import nn

__all__ = ["brief", "filled", "find_weights", "select_weights"]

_ALIASES = {
    "raw": ("raw", "", "model", "net", "state_dict"),
    "ema": ("ema", "model_ema", "ema_model", "ema_state_dict", "net_ema"),
}
_WRAPPERS = {"module", "_orig_mod"}  # prefixes left by DistributedDataParallel and torch.compile


def find_weights(state: Mapping[str, StateDict], key: str, card: Card | None = None) -> StateDict | None:
    """The set of weights that `--weights KEY` asks for, by its place in the file or in the card; None without it."""
    if card is not None and key in ("raw", "ema"):
        place = getattr(card.weights, key)
        return None if place is None else _at(state, place)
    names = _ALIASES.get(key, (key,))
    for name in names:
        below = [place for place in state if name and place.startswith(f"{name}.")]
        if name in state:
            return state[name]
        if len(below) == 1:
            return state[below[0]]
    return next((found for name in filter(None, names) if (found := _at(state, name))), None)


def _at(state: Mapping[str, StateDict], name: str) -> StateDict | None:
    """The set of weights at `name`, or the part of one whose tensor names begin with its last words."""
    if name in state:
        return state[name]
    for place, tensors in state.items():
        prefix = name.removeprefix(f"{place}.") if place else name
        if found := subset(tensors, prefix):
            return found
    return None


def select_weights(state: Mapping[str, StateDict], key: str, path: Path, card: Card | None = None) -> StateDict:
    """As `find_weights`; InputError where there are none."""
    found = find_weights(state, key, card)
    if found is None:
        known = ", ".join(repr(name) if name else "a bare state dict ('raw')" for name in state) or "no state dict"
        place = None if card is None or key not in ("raw", "ema") else getattr(card.weights, key)
        said = "" if place is None else f" at {place!r}"
        raise InputError(
            f"Expected weights {key!r}{said} in {path}, but it has {known}; pass one of these as --weights."
        )
    return found


def filled(
    module: nn.Module, state: Mapping[str, StateDict], key: str, path: Path, card: Card | None = None
) -> nn.Module:
    """`module` with the weights `key` as its parameters and buffers, frozen and in eval mode.

    Raises InputError if there are none, or they do not fit.
    """
    network = module if card is None else module.get_submodule("network")
    own = network.state_dict()
    tensors = select_weights(state, key, path, card)
    if card is not None and all(name.isdecimal() for name in tensors):
        tensors = select_weights(state, "raw", path, card) | _by_order(tensors, network)
    tensors = _unwrapped(tensors, own.keys(), () if card is None else card.weights.strip)
    absent, unused = ((), ()) if card is None else (card.weights.absent, card.weights.unused)
    missing = [name for name in own if name not in tensors and not _matches(name, absent)]
    unexpected = [name for name in tensors if name not in own and not _matches(name, unused)]
    wrong = [
        f"{name} {list(tensors[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", wrong)]
    found = "; ".join(f"{len(names)} {what}: {brief(names)}" for what, names in faults if names)
    if found:
        remedy = "the --model that was trained" if card is None else f"another card, or correct {card.name}"
        raise InputError(
            f"The weights in {path} do not fit the network {type(network).__name__} ({found}); "
            f"pass {remedy}, or other --weights."
        )
    kept = {name: tensors[name] for name in own if name in tensors}
    _check_finite(kept, path)
    network.load_state_dict(own | kept)
    return module.eval().requires_grad_(False)


def _by_order(tensors: StateDict, network: nn.Module) -> StateDict:
    """Tensors named 0, 1, ... under the names of the network's parameters, in order."""
    names = [name for name, _ in network.named_parameters()]
    values = [tensors[number] for number in sorted(tensors, key=int)]
    if len(names) != len(values):
        raise InputError(
            f"Expected a numbered tensor for each of the {len(names)} trained parameters of {type(network).__name__}, "
            f"but there are {len(values)}; correct the card's network or its weights."
        )
    return dict(zip(names, values, strict=True))


def _unwrapped(tensors: StateDict, names: Collection[str], strip: Sequence[str]) -> StateDict:
    """The tensors under the network's `names`: without the prefixes in `strip`, or one that all of them share."""
    for prefix in strip:
        tensors = {name.removeprefix(f"{prefix.removesuffix('.')}."): value for name, value in tensors.items()}
    while tensors.keys().isdisjoint(names):
        wrapper = next(iter(tensors)).partition(".")[0]
        if wrapper not in _WRAPPERS or not all(name.startswith(f"{wrapper}.") for name in tensors):
            break
        tensors = subset(tensors, wrapper)
    return tensors


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_finite(tensors: StateDict, path: Path) -> None:
    bad = {name: int((~value.isfinite()).sum()) for name, value in tensors.items()}
    bad = {name: count for name, count in bad.items() if count}
    if bad:
        named = brief([f"{name} ({count} of {tensors[name].numel()})" for name, count in bad.items()])
        raise InputError(
            f"Expected finite weights, but {path} has NaN or infinite values in {len(bad)} of {len(tensors)} tensors: "
            f"{named}; use an earlier checkpoint."
        )


def brief(names: list[str], count: int = 3) -> str:
    """The first names, and a sign that there are more."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
