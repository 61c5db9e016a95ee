"""Calling a module with other tensors in place of its parameters, and hooks on its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = [
    "call",
    "expand_over_samples",
    "flat_gradient",
    "gradient_size",
    "hooked",
    "names_by_layer",
    "parameter_places",
]


def parameter_places(module: nn.Module) -> dict[str, str]:
    """Every place that holds a parameter -> its name in `named_parameters`. A tied weight has several places.

    A module registered under two names counts once.
    """
    return {
        f"{prefix}.{local}".removeprefix("."): name
        for prefix, own in names_by_layer(module, dict(module.named_modules())).items()
        for local, name in own.items()
    }


def names_by_layer(module: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, dict[str, str]]:
    """By layer of the module, the name of each of its own parameters -> its name in `named_parameters`."""
    names = {id(p): name for name, p in module.named_parameters()}
    return {
        layer: {local: names[id(p)] for local, p in part.named_parameters(recurse=False)}
        for layer, part in layers.items()
    }


def call(module: nn.Module, places: Mapping[str, str], tensors: Mapping[str, Tensor], inputs: tuple) -> Tensor:
    """Evaluate module(*inputs) with other tensors in place of its parameters.

    functional_call has its own handling of tied weights, but that leaves the replaced tensors in a module registered
    under two names. Every place is named here instead.

    Args:
        module: The network; it is left as it was.
        places: `parameter_places(module)`.
        tensors: Name of a parameter -> tensor, for every parameter.
        inputs: Arguments of the network.

    Returns:
        What the network returns.
    """
    tensors_by_place = {place: tensors[name] for place, name in places.items()}
    return functional_call(module, tensors_by_place, inputs, tie_weights=False)


def flat_gradient(gradient: Tensor, axes: int = 0) -> Tensor:
    """Gradients [*axes, *shape] of a parameter as real vectors [*axes, P]. A complex entry counts as two real ones."""
    gradient = torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient
    return gradient[..., None].flatten(axes)


def gradient_size(parameter: Tensor) -> int:
    """P, the real numbers in the gradient of `parameter`."""
    return parameter.numel() * (2 if parameter.is_complex() else 1)


@contextmanager
def hooked(layers: Mapping[str, nn.Module], hook_for: Callable[[str], Callable[..., Tensor | None]]) -> Iterator[None]:
    """Within this context, hook_for(name)(layer, args, output) sees each output of each layer, and may replace it."""
    handles = [module.register_forward_hook(hook_for(name)) for name, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def expand_over_samples(parameter: Tensor, n: int, axes: int) -> Tensor:
    """Give each sample its own copy of a parameter that broadcasts over the batch.

    Args:
        parameter: A parameter that no layer with a rule holds.
        n: The number of samples.
        axes: 0 for [1, *rest] -> [n, *rest]. Else how many axes the parameter lacks in front:
            [*shape] -> [n, 1, ..., *shape] with `axes` - 1 axes of size 1.

    Returns:
        The copies, contiguous.
    """
    if axes == 0 and parameter.shape[:1] == (1,):
        return parameter.expand(n, *parameter.shape[1:]).clone()
    ones = [1] * max(axes - 1, 0)
    return parameter.view(1, *ones, *parameter.shape).expand(n, *ones, *parameter.shape).clone()
