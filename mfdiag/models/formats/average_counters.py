"""Counters that training tools store beside an average, which say whether it was ever updated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mfdiag.models.formats.containers import is_tensor, scalar

__all__ = ["never_updated"]

# of AveragedModel; of ema-pytorch (False until the first update); of latent diffusion and torch-ema; of diffusers
_COUNTERS = ("n_averaged", "initted", "num_updates", "optimization_step")
_LIGHTNING = "averaging_state"  # where WeightAveraging has the counter of the average in `state_dict`
_MAX_DEPTH = 4


def never_updated(places: list[str], *trees: Mapping[Any, Any]) -> dict[str, str]:
    """The averages that were never updated, so that they hold the initial weights.

    Args:
        places: The dotted places of averages.
        trees: The mappings that may hold their counters: a file's, and that of its configuration.

    Returns:
        Place -> the counter that says so, as `n_averaged = 0`. An average without a counter is not among them.
    """
    counters: dict[str, tuple[str, Any]] = {}
    for tree in trees:
        for place, name, value in _counters(tree, "", _MAX_DEPTH):
            counters["state_dict" if place == _LIGHTNING else place] = (name, value)
    still = {}
    for average in places:
        words = average.split(".") if average else []
        above = (".".join(words[:length]) for length in range(len(words), -1, -1))
        counter = next((counters[place] for place in above if place in counters), None)
        if counter is not None and counter[1] == 0:
            still[average] = f"{counter[0]} = {counter[1]}"
    return still


def _counters(tree: Mapping[Any, Any], place: str, depth: int) -> Iterator[tuple[str, str, Any]]:
    """The place of the average, the name, and the value of each counter in a mapping and below it."""
    for key, value in tree.items():
        if not isinstance(key, str):
            continue
        full = f"{place}.{key}" if place else key
        if isinstance(value, Mapping):
            if depth > 1:
                yield from _counters(value, full, depth - 1)
            continue
        name = key.rpartition(".")[2]
        if name in _COUNTERS and (not is_tensor(value) or tuple(value.shape) == ()):
            number = scalar(value)
            if isinstance(number, int | float):
                yield full.rpartition(".")[0], name, int(number) if number == number // 1 else number
