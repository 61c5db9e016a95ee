"""What a network is called with, and the signatures that fields and derivatives agree on."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mfdiag.errors import InputError

__all__ = ["DerivativesAtPoint", "Differentiate", "Inputs", "Velocity", "require_velocity", "select_samples"]

Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""x [n, *shape], r [n], t [n], labels [n] or None."""

Velocity = Callable[..., Tensor]
"""(x [n, *shape], r [n], t [n], labels [n] or None) -> u [n, *shape]."""

Differentiate = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x, r, t, labels, dx [m, n, *shape], dt [m, n]) -> u [n, *shape] and its derivatives [m, n, *shape] with dr = 0."""

DerivativesAtPoint = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(dx [m, n, *shape], dt [m, n]) -> what `Differentiate` returns, at inputs fixed beforehand."""


def select_samples(inputs: Inputs, selection: slice) -> Inputs:
    """The inputs of some of the samples."""
    x, r, t, labels = inputs
    return x[selection], r[selection], t[selection], None if labels is None else labels[selection]


def require_velocity(network: str, u: object, x: Tensor) -> Tensor:
    """Check that a network returned one tensor shaped as its input.

    Args:
        network: What the error calls the network, such as "The model".
        u: What the network returned.
        x: Its input, [n, *shape].

    Returns:
        `u`, a tensor [n, *shape].

    Raises:
        InputError: `u` is no tensor, or has another shape.
    """
    if not isinstance(u, Tensor):
        raise InputError(f"{network} returns a {type(u).__name__} where one tensor u(x, r, t) is expected.")
    if u.shape != x.shape:
        actual, expected = tuple(u.shape[1:]), tuple(x.shape[1:])
        raise InputError(f"{network} returns samples of shape {actual} where u of shape {expected} is expected.")
    return u
