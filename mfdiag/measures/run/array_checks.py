"""Checks that arrays beside the samples and the networks that they condition fit: none missing, dropped or unused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from mfdiag.errors import InputError
from mfdiag.flow.conditions import Conditions
from mfdiag.flow.data.datasets import Data, conditions_of
from mfdiag.models.cards.adapter import CardAdapter
from mfdiag.models.condition_use import unused_conditions
from mfdiag.models.wrapper import conditions_taken, unwrapped

__all__ = ["require_arrays", "require_fitting_arrays", "require_no_dropped_array"]

_TRIED = 3  # samples that show whether conditions are used


def require_arrays(names: Iterable[str], data: Data, who: str) -> None:
    """Check that data have the arrays that a network takes.

    Args:
        names: Names of the arrays.
        data: The data.
        who: What takes them, for errors.

    Raises:
        InputError: One is missing.
    """
    arrays = conditions_of(data)
    for name in names:
        if name not in arrays:
            present = f"only {', '.join(arrays)}" if arrays else "none"
            raise InputError(
                f"Expected array {name!r} beside the samples of {data.name}, because {who} takes it, but there is "
                f"{present}. Add it with one row per sample, or correct the name."
            )


def require_fitting_arrays(networks: Sequence[nn.Module], data: Data) -> None:
    """Check that each array beside the samples conditions a network, and that the first uses all that it takes.

    Args:
        networks: The measured network first.
        data: The data.

    Raises:
        InputError: No network receives one of the arrays, or the output does not depend on one.
    """
    require_no_dropped_array(networks, data)
    _require_arrays_used(networks[0], data)


def _require_arrays_used(network: nn.Module, data: Data) -> None:
    """Check that a network's output depends on each array beside the samples that it takes.

    Args:
        network: The network.
        data: The data, whose first rows are tried.

    Raises:
        InputError: The output does not depend on one of them.
    """
    names = conditions_taken(network)
    if not names:
        return
    arrays = conditions_of(data)
    rows = np.arange(_TRIED) % len(arrays[names[0]])
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))
    x = torch.randn(_TRIED, *data.shape, generator=torch.Generator().manual_seed(0)).to(like)
    r, t = torch.linspace(0.1, 0.4, _TRIED).to(like), torch.linspace(0.5, 0.9, _TRIED).to(like)
    labels = torch.zeros(_TRIED, dtype=torch.int64) if getattr(network, "num_classes", 0) and data.num_classes else None
    own = {name: torch.as_tensor(arrays[name][rows]) for name in names}
    if unused := unused_conditions(network, x, r, t, Conditions(labels, own).to(x)):
        raise InputError(
            f"{type(unwrapped(network)).__name__} takes the array {unused[0]!r} of {data.name}, but its output does "
            "not depend on it: correct the network or the card's call, or pass a constant in its place by a card with "
            "`call: {keywords: {PARAMETER: none}}` and --data PATH:conditions=none."
        )


def require_no_dropped_array(networks: Iterable[nn.Module], data: Data) -> None:
    """Check that each array beside the samples conditions one of the networks.

    Args:
        networks: The measured network first.
        data: The data.

    Raises:
        InputError: No network receives one of the arrays.
    """
    first, *others = networks
    taken = {name for network in (first, *others) for name in conditions_taken(network)}
    dropped = [name for name in conditions_of(data) if name not in taken]
    if not dropped:
        return
    adapter, network = first, type(unwrapped(first)).__name__
    remedy = f"rename the array or the parameter, pass a card with `call: {{conditions: {{PARAMETER: {dropped[0]}}}}}`"
    if isinstance(adapter, CardAdapter):
        remedy = f"add `conditions: {{PARAMETER: {dropped[0]}}}` to call in {adapter.card.name}"
    raise InputError(
        f"{data.name} has the array{'s' * (len(dropped) > 1)} {', '.join(dropped)} beside its samples, which "
        f"{network} does not receive: {remedy}, or leave arrays out with --data PATH:conditions=none."
    )
