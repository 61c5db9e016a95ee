"""Forward pre-hooks that move the arguments of a network.

A caller passes what the parameters of `forward` are named after, but a pre-hook may reorder, rename or combine the
arguments on their way. The names then say nothing about what the caller must pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from mfdiag.models.plain_calls import plain_calls

__all__ = ["moved_argument"]

_SHIFT = 0.0625  # of a time; every function of it changes


def moved_argument(
    network: nn.Module, arguments: Sequence[tuple[str, Any]], keywords: Mapping[str, Any], words: Mapping[str, str]
) -> tuple[str, str] | None:
    """The first of some parameters that does not receive what was passed for it, and for it alone.

    Args:
        network: A network with forward pre-hooks, or without.
        arguments: Parameter and value of each positional argument of a call.
        keywords: Further arguments by parameter.
        words: The parameters to check, with the word of the call that each receives: x, r, t, h or y.

    Returns:
        The parameter, and in words what it receives instead; None where the hooks leave each argument in its place. x
        may depend on the times, as in preconditioning.
    """
    if not _hooks(network):
        return None
    values = {**dict(arguments), **keywords}
    names = [name for name, _ in arguments]

    def received(changed: Mapping[str, Any]) -> Mapping[str, Any]:
        passed = {name: v.clone() if isinstance(v, Tensor) else v for name, v in {**values, **changed}.items()}
        args, kwargs = _after_hooks(network, tuple(passed[n] for n in names), {n: passed[n] for n in keywords})
        return signature(network.forward).bind(*args, **kwargs).arguments

    base = received({})
    moved = {
        name: received({name: v + _SHIFT if v.is_floating_point() else 1 - v.clamp(0, 1)})
        for name, v in values.items()
        if isinstance(v, Tensor) and v.dtype != torch.bool
    }
    for name in (name for name in words if name in moved):
        depends_on = [other for other in moved if not _equal(base.get(name), moved[other].get(name))]
        if name not in depends_on:
            return name, f"what was passed as {' and '.join(depends_on)}" if depends_on else "a value of its own"
        if words[name] != "x" and len(depends_on) > 1:
            return name, f"a value made of {' and '.join(depends_on)}"
    return None


def _hooks(network: nn.Module) -> list[tuple[Callable[..., Any], bool]]:
    """The user's pre-hooks, and whether each takes keywords."""
    return [
        (hook, number in network._forward_pre_hooks_with_kwargs)
        for number, hook in network._forward_pre_hooks.items()
        if plain_calls(network) is None or getattr(hook, "__self__", None) is not plain_calls(network)
    ]


def _after_hooks(
    network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The arguments as the pre-hooks pass them on; see `torch.nn.Module.register_forward_pre_hook`."""
    for hook, with_kwargs in _hooks(network):
        result = hook(network, args, dict(kwargs)) if with_kwargs else hook(network, args)
        if result is not None and with_kwargs:
            args, kwargs = result
        elif result is not None:
            args = result if isinstance(result, tuple) else (result,)
    return args, kwargs


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return a is b or bool(a == b)
