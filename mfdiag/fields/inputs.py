"""What a network is called with, and the signatures that fields and derivatives share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mfdiag.errors import InputError
from mfdiag.flow.conditions import Condition

__all__ = ["DerivativesAtPoint", "Differentiate", "Inputs", "VelocityFunction", "require_velocity", "select_samples"]

Inputs = tuple[Tensor, Tensor, Tensor, Condition]
"""x [n, *shape], r [n], t [n], and the condition: labels [n], `Conditions` with arrays by name, or None.

Labels are [n, 4] for a network that takes its guidance as an input (`takes_guidance`).
"""

VelocityFunction = Callable[..., Tensor]
"""(x [n, *shape], r [n], t [n], condition) -> velocity [n, *shape]; modules are called this way."""

Differentiate = Callable[[Tensor, Tensor, Tensor, Condition, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x, r, t, condition, dx [m, n, *shape], dt [m, n]) -> u [n, *shape] and its derivatives [m, n, *shape].

The m tangents are (dx, dr, dt) with dr = 0.
"""

DerivativesAtPoint = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(dx [m, n, *shape], dt [m, n]) -> what `Differentiate` returns, at inputs fixed beforehand."""


def select_samples(inputs: Inputs, selection: slice) -> Inputs:
    """Select some of the samples.

    Args:
        inputs: Inputs of n samples.
        selection: Which of them.

    Returns:
        The inputs of the selected samples.
    """
    x, r, t, labels = inputs
    return x[selection], r[selection], t[selection], None if labels is None else labels[selection]


def require_velocity(network: str, u: object, x: Tensor) -> Tensor:
    """Check that a network returned one tensor of the shape of its input.

    Args:
        network: What the error calls the network, such as "The model".
        u: What the network returned.
        x: Its input, [n, *shape].

    Returns:
        `u`, a tensor [n, *shape].

    Raises:
        InputError: `u` is not a tensor, or has another shape, or numbers that are complex, whole or of less precision.
    """
    if not isinstance(u, Tensor):
        raise InputError(
            f"{network} must return one tensor u(x, r, t), but it returned a {type(u).__name__}{_remedy(u, x)}."
        )
    if u.shape != x.shape:
        raise InputError(
            f"{network} must return samples of shape {tuple(x.shape[1:])}, but it returned shape {tuple(u.shape[1:])}."
        )
    if u.dtype not in (x.dtype, torch.float32, torch.float64):
        actual, expected = (str(dtype).removeprefix("torch.") for dtype in (u.dtype, x.dtype))
        raise InputError(f"{network} must return {expected}, as its input is, but it returned {actual}: convert it.")
    return u


def _remedy(output: object, x: Tensor) -> str:
    """The card line that takes a tensor of the shape of x out of an output of several parts; empty if it has none."""
    parts: dict[Any, object] = {}
    if isinstance(output, Mapping):
        parts = dict(output)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        parts = dict(enumerate(output))
    elif hasattr(output, "__dict__"):
        parts = dict(vars(output))
    for name, value in parts.items():
        if isinstance(value, Tensor) and value.shape == x.shape:
            return f": pass --model a card with `output: {{part: {name}}}`, or return this part alone"
    return ": return the tensor alone"
