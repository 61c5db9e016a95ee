"""Names of weights in a file: which sets are copies of one network, which are averages, and what wrappers add to names.

Everything here works on names alone, so it serves tensors and headers alike.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from mfdiag.models.formats.containers import tensors_below

__all__ = [
    "NamedWeights",
    "is_average",
    "is_bookkeeping",
    "place_of",
    "split_copies",
    "under_names",
    "without_wrappers",
]

_ALIASES = {  # names that training scripts give these sets, in order of preference
    "raw": ("raw", "", "model", "net", "state_dict", "current_model_state", "online_model", "params"),
    "ema": ("ema", "model_ema", "ema_model", "ema_state_dict", "net_ema", "ema_params", "params_ema"),
}
# added to names by DistributedDataParallel and AveragedModel, torch.compile, activation checkpointing, and FSDP
_WRAPPERS = frozenset({"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
# buffers of AveragedModel, ema-pytorch, and the EMA class of latent diffusion; they are not weights
_BOOKKEEPING = frozenset({"n_averaged", "initted", "step", "decay", "num_updates"})
_AVERAGE = re.compile(r"(?:^|[^a-zA-Z])emas?(?![a-z])|EMA|Ema(?![a-z])|shadow|averag|(?:^|_)(?:avg|swa)(?:_|$)")
_POST_HOC = re.compile(r"(?P<place>(?:.*\.)?ema_models\.\d+)\.ema_model\.(?P<name>.+)")
_MAX_RAW_COPIES = 2  # beside averages: the network itself, and the online model of ema-pytorch
_PREFIX_WORDS = 2  # of the prefixes that may hold a copy
_ANCHORS = 8  # names of the network that are searched for in the file to find prefixes


class NamedWeights(NamedTuple):
    """Tensors under the names of a network, and the names in the file that belong to other modules."""

    tensors: dict[str, Any]
    ignored: list[str]


def is_bookkeeping(name: str) -> bool:
    """Whether a tensor is the counter or the decay of an average, not a weight."""
    return name.rpartition(".")[2] in _BOOKKEEPING


def is_average(place: str, sets: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the weights at a dotted place are an average, by its names: the last word that decides counts.

    In ema-pytorch's files, `ema.ema_model` is the average and `ema.online_model` is not. Lightning's `WeightAveraging`
    stores the average as `state_dict` and the raw weights as `current_model_state`.
    """
    if "n_averaged" in sets[place]:
        return True
    if "current_model_state" in sets and place.partition(".")[0] == "state_dict":
        return True
    for word in reversed(place.split(".")):
        if word.startswith(("online", "current")):
            return False
        if _AVERAGE.search(word):
            return True
    return False


def split_copies(sets: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The sets of weights, where a set that holds copies of one network (net.*, net_ema.*) becomes one set per copy.

    Sets without weights, such as the counter of an average alone, are left out.
    """
    places = {}
    for place, tensors in sets.items():
        for prefix, copy in (_numbered_averages(tensors) or _copies(tensors) or {"": tensors}).items():
            places[".".join(filter(None, (place, prefix)))] = copy
    return {place: tensors for place, tensors in places.items() if not all(map(is_bookkeeping, tensors))}


def _numbered_averages(tensors: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The averages that ema-pytorch's PostHocEMA numbers, if the set holds nothing else."""
    averages: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        match = _POST_HOC.fullmatch(name)
        if match is not None:
            averages.setdefault(match["place"], {})[match["name"]] = value
        elif not is_bookkeeping(name):
            return {}
    return averages


def _copies(tensors: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Prefix -> tensors of each copy; empty if no prefix is named as an average."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        words = name.split(".")
        for depth in range(1, min(len(words), _PREFIX_WORDS + 1)):
            groups.setdefault(".".join(words[:depth]), {})[".".join(words[depth:])] = value
    averages = {prefix for prefix in groups if _AVERAGE.search(prefix.rpartition(".")[2])}
    if not averages:
        return {}
    weights = [name for name in tensors if not is_bookkeeping(name)]
    for prefix in groups:
        if prefix in averages and len(weights) > 1 and all(name.startswith(f"{prefix}.") for name in weights):
            nested = _copies(groups[prefix])
            return {f"{prefix}.{inner}": part for inner, part in nested.items()} or {prefix: groups[prefix]}
    outside = {name: value for name, value in tensors.items() if averages.isdisjoint(_prefixes_of(name))}
    signatures = {prefix: _signature(part) for prefix, part in (groups | {"": outside}).items()}
    copies = _paired(signatures, averages)
    copies = {prefix for prefix in copies if not prefix or prefix.rpartition(".")[0] not in copies - {""}}
    parts = {prefix: groups[prefix] if prefix else outside for prefix in signatures if prefix in copies}
    others = copies - averages
    # a network's own layers may be named ema; they are many, of one name, or only a part of the file
    last_words = {prefix.rpartition(".")[2] for prefix in copies & averages}
    is_whole_network = (
        0 < len(others) <= _MAX_RAW_COPIES
        and len(last_words) == len(copies) - len(others)
        and 2 * sum(map(len, parts.values())) >= len(tensors)
    )
    return parts if is_whole_network else {}


def _prefixes_of(name: str) -> list[str]:
    """The prefixes that may hold a copy: the first word, the first two."""
    words = name.split(".")
    return [".".join(words[:depth]) for depth in range(1, min(len(words), _PREFIX_WORDS + 1))]


def _paired(signatures: Mapping[str, frozenset[str]], averages: Collection[str]) -> set[str]:
    """The prefixes of averages that may average another prefix, and those others.

    A file may have as many prefixes as tensors, so equal signatures are compared once, and an average only with the
    signatures that have its rarest name.
    """
    prefixes: dict[tuple[bool, frozenset[str]], list[str]] = {}
    for prefix, signature in signatures.items():
        prefixes.setdefault((prefix in averages, signature), []).append(prefix)
    networks: dict[str, list[frozenset[str]]] = {}
    for averaged, signature in prefixes:
        for name in () if averaged else signature:
            networks.setdefault(name, []).append(signature)
    paired = set()
    for averaged, signature in prefixes:
        if averaged and len(signature) > 1:
            candidates = min((networks.get(name, []) for name in signature), key=len)
            for other in candidates:
                if _may_average(signature, other):
                    paired |= {*prefixes[True, signature], *prefixes[False, other]}
    return paired


def _may_average(average: frozenset[str], network: frozenset[str]) -> bool:
    """Whether the names of an average are a network's, or its parameters' alone."""
    return len(average) > 1 and average <= network and len(network) <= 2 * len(average)


def _signature(tensors: Iterable[str]) -> frozenset[str]:
    """The names without wrappers, counters and dots: the EMA class of latent diffusion leaves out the dots."""
    return frozenset(without_wrappers(name).replace(".", "") for name in tensors if not is_bookkeeping(name))


def place_of(places: Mapping[str, dict[str, Any]], key: str) -> str | None:
    """The place of the raw weights (`key` "raw") or their average ("ema"), or None if the file does not decide.

    Args:
        places: The sets of weights, as from `split_copies`.
        key: "raw" or "ema".
    """
    candidates = [place for place in places if is_average(place, places) == (key == "ema")]
    for alias in _ALIASES[key]:
        below = [place for place in candidates if alias and place.startswith(f"{alias}.")]
        named = [place for place in candidates if alias and place.rpartition(".")[2] == alias]
        for matches in ([place for place in candidates if place == alias], below, named):
            if len(matches) == 1:
                return matches[0]
    return candidates[0] if len(candidates) == 1 else None


def without_wrappers(name: str) -> str:
    """The name of a tensor without the words that wrappers add to it, anywhere in it."""
    words = name.split(".")
    return name if _WRAPPERS.isdisjoint(words) else ".".join(word for word in words if word not in _WRAPPERS)


def under_names(tensors: Mapping[str, Any], names: Collection[str]) -> NamedWeights | list[str]:
    """The tensors of a file under the names of a network: without wrappers, counters and the network's prefix.

    Args:
        tensors: Tensors by their names in the file.
        names: Names in the state dict of the network.

    Returns:
        The tensors; those that belong to other modules are left out if the network finds all its names. A list of
        prefixes if several parts of the file fit equally well.
    """
    if all(name in tensors for name in names):
        own_names = frozenset(names)
        return NamedWeights({n: v for n, v in tensors.items() if n in own_names or not is_bookkeeping(n)}, [])
    own = {without_wrappers(name): name for name in names}
    file = {
        without_wrappers(name): value for name, value in tensors.items() if name in names or not is_bookkeeping(name)
    }
    if len(own) < len(names) or len(file) + sum(map(is_bookkeeping, tensors)) < len(tensors):
        return NamedWeights(dict(tensors), [])
    without_dots = {name.replace(".", ""): name for name in own}
    if file and len(without_dots) == len(own) and not any("." in name for name in file) and file.keys() & without_dots:
        return NamedWeights({own.get(without_dots.get(name, name), name): value for name, value in file.items()}, [])
    counts = {prefix: sum(prefix + name in file for name in own) for prefix in ("", *_prefixes(file, own))}
    most = max(counts.values())
    best = [prefix for prefix, count in counts.items() if count == most]
    if most == 0:
        return NamedWeights(_below_network(file, own), [])
    if "" in best:
        return NamedWeights({own.get(name, name): value for name, value in file.items()}, [])
    if len(best) > 1:
        best = [prefix for prefix in best if not _AVERAGE.search(prefix)] or best
    if len(best) > 1:
        return [prefix.removesuffix(".") for prefix in best]
    prefix = best[0]
    inside = tensors_below(file, prefix.removesuffix("."))
    outside = {name: value for name, value in file.items() if not name.startswith(prefix)}
    renamed = {own.get(name, name): value for name, value in inside.items()}
    complete = all(name in renamed for name in names)
    return NamedWeights(renamed if complete else renamed | outside, list(outside) if complete else [])


def _prefixes(file: Iterable[str], own: Iterable[str]) -> list[str]:
    """What stands in the file before some names of the network, each with its dot."""
    anchors = tuple(islice(sorted(own, key=lambda name: -name.count(".")), _ANCHORS))
    return list(dict.fromkeys(_prefixes_before(file, anchors)))


def _prefixes_before(file: Iterable[str], anchors: tuple[str, ...]) -> Iterator[str]:
    ends = tuple(f".{anchor}" for anchor in anchors)
    for name in file:
        if name.endswith(ends):
            yield from (name.removesuffix(end) + "." for end in ends if name.endswith(end))


def _below_network(file: Mapping[str, Any], own: Mapping[str, str]) -> dict[str, Any]:
    """The tensors under the network's names, if the factory wraps the network whose weights the file holds."""
    first = next(iter(own), "").partition(".")[0]
    inner = {name.removeprefix(f"{first}."): full for name, full in own.items()}
    wraps = bool(first) and all(name.startswith(f"{first}.") for name in own) and inner.keys() & file.keys()
    return {inner.get(name, name): value for name, value in file.items()} if wraps else dict(file)
