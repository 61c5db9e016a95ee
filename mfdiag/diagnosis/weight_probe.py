"""What the weights alone say: how far an average is from them, their size, and their precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mfdiag.diagnosis.measured import Measured, exactly
from mfdiag.gradients.accumulate import layer_of
from mfdiag.models.wrapper import prefix_of

__all__ = ["narrowest_type", "parameters_by_layer", "weight_distances", "weight_scale"]


def narrowest_type(module: nn.Module) -> str:
    """Find the narrowest type that holds every weight exactly.

    Args:
        module: The network.

    Returns:
        bfloat16, float16 or float32.
    """
    weights = [p.detach() for p in module.parameters() if p.is_floating_point()]
    for dtype in (torch.bfloat16, torch.float16):
        if weights and all(torch.equal(w.to(dtype).to(w.dtype), w) for w in weights):
            return str(dtype).removeprefix("torch.")
    return "float32"


def weight_distances(networks: Mapping[str, nn.Module]) -> list[Measured]:
    """Measure how far averaged weights are from the current ones.

    Args:
        networks: Networks by set of weights.

    Returns:
        The distance over all parameters and by layer; nothing without both "raw" and "ema".
    """
    if not {"raw", "ema"} <= networks.keys():
        return []
    layers = [parameters_by_layer(networks[key]) for key in ("raw", "ema")]
    raw, average = ({"all": [p for group in layer.values() for p in group], **layer} for layer in layers)
    measured = []
    for layer, parameters in raw.items():
        value, n = _relative_distance(parameters, average[layer]), sum(p.numel() for p in parameters)
        measured.append(Measured("weight_distance", exactly(value, n), keys={"layer": layer}))
    return measured


def parameters_by_layer(module: nn.Module) -> dict[str, list[Tensor]]:
    """Sort the trained parameters of a network.

    Args:
        module: The network.

    Returns:
        Name of the layer, as in tables -> its parameters.
    """
    prefix, layers = prefix_of(module), dict[str, list[Tensor]]()
    for name, parameter in module.named_parameters():
        layers.setdefault(layer_of(name.removeprefix(prefix)), []).append(parameter)
    return layers


def weight_scale(module: nn.Module) -> Measured:
    """Measure the size of the weights.

    Args:
        module: The network.

    Returns:
        It, relative to that which keeps the size of activations.
    """
    weights = [p.detach().flatten(1).double() for p in module.parameters() if p.ndim > 1]
    sizes = [float(w.square().mean().sqrt().clamp_min(1e-300)) * w.shape[1] ** 0.5 for w in weights]
    value = float(np.exp(np.mean(np.log(sizes)))) if sizes else np.nan
    return Measured("weight_scale", exactly(value, sum(w.numel() for w in weights)))


def _relative_distance(raw: Sequence[Tensor], average: Sequence[Tensor]) -> float:
    """|average - raw| / |raw| over several tensors."""
    a, b = (torch.cat([p.detach().flatten().double() for p in tensors]) for tensors in (average, raw))
    return float((a - b).norm() / b.norm().clamp_min(1e-300))
