"""Built-in architectures by name. torch is imported only when one of them is built."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from mfdiag.errors import InputError, did_you_mean, first_line, is_out_of_memory

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "PREDICTIONS", "Bounds", "build_model"]

_MOST_LETTERS = 400  # of arguments in an error

MODELS: dict[str, tuple[str, str]] = {
    "mlp": ("mfdiag.models.networks.mlp:MLP", "multilayer perceptron on vectors (dim, hidden, depth, num_classes)"),
    "dit": (
        "mfdiag.models.networks.dit:DiT",
        "diffusion transformer on images "
        "(channels, size, patch, width, depth, heads, mlp_ratio, num_classes, time_scale)",
    ),
    "decoupled_dit": (
        "mfdiag.models.networks.decoupled:DecoupledDiT",
        "diffusion transformer whose encoder takes t and whose decoder takes r "
        "(the arguments of dit, decoder_depth, velocity_head)",
    ),
    "unet": (
        "mfdiag.models.networks.unet:UNet",
        "convolutional U-Net on images (channels, width, multipliers, blocks, heads, num_classes, time_scale)",
    ),
    "unet1d": (
        "mfdiag.models.networks.unet:UNet1d",
        "convolutional U-Net on sequences (channels, width, multipliers, blocks, heads, num_classes, time_scale)",
    ),
    "gaussian": (
        "mfdiag.models.networks.gaussian:GaussianAverageVelocity",
        "exact average velocity of Gaussian data (mean, std, shape)",
    ),
}
"""Name -> ("module:attribute" of the constructor, a one-line description with its arguments)."""

PREDICTIONS: dict[str, str] = {
    "u": "average velocity; at r = t, the velocity dx_t/dt",
    "x": "data x_0, as x:[floor=0.05]; u = (sigma' x_t - D x) / max(sigma, floor) with D = alpha sigma' - alpha' sigma",
    "eps": "noise x_1, as eps:[floor=0.05]; u = (alpha' x_t + D eps) / max(alpha, floor)",
    "v": "v = alpha eps - sigma x (Salimans and Ho, arXiv 2202.00512); "
    "u = ((alpha alpha' + sigma sigma') x_t + D v) / (alpha^2 + sigma^2)",
}
"""What a network predicts -> how the average velocity u follows from it (`mfdiag.models.prediction`)."""


class Bounds(NamedTuple):
    """The most that a network may have: parameters and buffers, and numbers in them."""

    tensors: int = 20_000
    numbers: int = 2**34


def build_model(name: str, arguments: Mapping[str, Any], bounds: Bounds = Bounds()) -> nn.Module:
    """Build a new network of a built-in architecture, with forward(x, r, t, y=None) -> u.

    Args:
        name: The architecture.
        arguments: Arguments of its constructor, which may come from a file.
        bounds: How large it may be; a larger one is refused before it takes memory.

    Returns:
        The network.

    Raises:
        InputError: The name is unknown, the constructor does not take the arguments, or the network is too large.
    """
    if name not in MODELS:
        raise did_you_mean("architecture", name, MODELS)
    module, attribute = MODELS[name][0].split(":")
    constructor = getattr(importlib.import_module(module), attribute)
    try:
        _require_bounded(name, lambda: constructor(**arguments), bounds)
        return constructor(**arguments)
    except InputError:
        raise
    except Exception as error:  # whatever values of any kind lead to
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"Architecture {name!r} cannot be built from the arguments {_short(arguments)}: {first_line(error)}; "
            f"it takes {MODELS[name][1].rpartition('(')[2].rstrip(')')}."
        ) from error


def _short(arguments: Mapping[str, Any]) -> str:
    text = str(dict(arguments))
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."


def _without_initialization() -> Any:
    """A context in which numbers are not initialized: on the device meta, that would import torch's compiler."""
    from torch.overrides import TorchFunctionMode

    class WithoutInitialization(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            name = getattr(func, "__name__", "")
            in_place = name.endswith("_") and not name.startswith("_")
            return [*args, *kwargs.values()][0] if in_place else func(*args, **kwargs)

    return WithoutInitialization()


def _require_bounded(name: str, build: Callable[[], nn.Module], bounds: Bounds) -> None:
    """InputError where a network would be larger than the bounds. It is built without memory for its numbers."""
    import torch
    from torch.nn.modules import module

    tensors = numbers = 0

    def count(part: nn.Module, key: str, tensor: Any) -> None:
        nonlocal tensors, numbers
        tensors += tensor is not None
        numbers += 0 if tensor is None else tensor.numel()
        if tensors > bounds.tensors or numbers > bounds.numbers:
            raise InputError(
                f"Expected a network {name!r} of at most {bounds.tensors:,} tensors and {bounds.numbers:,} numbers, "
                "but its arguments make it larger. Correct them, or write the file again."
            )

    handles = [
        module.register_module_parameter_registration_hook(count),
        module.register_module_buffer_registration_hook(count),
    ]
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]), _without_initialization():
            build()
    finally:
        for handle in handles:
            handle.remove()
