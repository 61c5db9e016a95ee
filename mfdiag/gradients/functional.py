"""Calling a module with other tensors in the place of its parameters, wherever these are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["call", "hooked", "parameter_places"]


def parameter_places(module: nn.Module) -> dict[str, str]:
    """Every place a parameter is kept in -> the name `named_parameters` gives it: tied weights have several places.

    A module registered under two names is one place.
    """
    names = {id(p): name for name, p in module.named_parameters()}
    return {
        f"{prefix}.{local}".removeprefix("."): names[id(p)]
        for prefix, owner in module.named_modules()
        for local, p in owner.named_parameters(recurse=False)
    }


def call(module: nn.Module, places: Mapping[str, str], tensors: Mapping[str, Tensor], inputs: tuple) -> Tensor:
    """module(*inputs) with `tensors`, by parameter name, in all their places.

    Naming every place once replaces functional_call's own tying, which leaves a module registered under two names with
    the replaced tensors.
    """
    there = {place: tensors[name] for place, name in places.items()}
    return functional_call(module, there, inputs, tie_weights=False)


@contextmanager
def hooked(layers: Mapping[str, nn.Module], hook_for: Callable[[str], Callable[..., Tensor | None]]) -> Iterator[None]:
    """Within, the output of each layer passes through hook_for(name)(module, args, out) on its way; None lets it be."""
    handles = [module.register_forward_hook(hook_for(name)) for name, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
