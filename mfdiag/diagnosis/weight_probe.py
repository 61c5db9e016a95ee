"""What the weights alone say: how far an average is from them, their size, and their precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mfdiag.diagnosis.measured import Measured, exactly
from mfdiag.gradients.accumulate import layer_of
from mfdiag.models.wrapper import prefix_of

__all__ = ["narrowest_type", "parameters_by_layer", "weight_distances", "weight_scales"]


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


def weight_scales(module: nn.Module) -> list[Measured]:
    """Measure the size of the weights.

    Args:
        module: The network.

    Returns:
        It over all matrices, relative to that which keeps the size of activations, and that of each layer that
        multiplies activations, relative to all of these.
    """
    weights = [p for p in module.parameters() if p.ndim > 1]
    whole = float(np.exp(np.mean([_log_size(w) for w in weights]))) if weights else np.nan
    n = sum(w.numel() for w in weights)
    measured = [Measured("weight_scale", exactly(whole, n))]
    tables = {id(p) for layer in module.modules() if isinstance(layer, nn.Embedding) for p in layer.parameters()}
    prefix, layers = prefix_of(module), dict[str, float]()
    for name, parameter in module.named_parameters():
        if name.endswith("weight") and parameter.ndim > 1 and id(parameter) not in tables:
            layers[layer_of(name.removeprefix(prefix))] = _log_size(parameter)
    middle = float(np.mean(list(layers.values()))) if layers else 0.0
    for layer, size in layers.items():
        relative = float(np.exp(size - middle))
        measured.append(Measured("layer_weight_scale", exactly(relative, n), keys={"layer": layer}))
    return measured


def _log_size(weight: Tensor) -> float:
    """Logarithm of rms(W) sqrt(inputs)."""
    matrix = weight.detach().flatten(1).double()
    return float((matrix.square().mean().sqrt() * matrix.shape[1] ** 0.5).clamp_min(1e-300).log())


def _relative_distance(raw: Sequence[Tensor], average: Sequence[Tensor]) -> float:
    """|average - raw| / |raw| over several tensors."""
    a, b = (torch.cat([p.detach().flatten().double() for p in tensors]) for tensors in (average, raw))
    return float((a - b).norm() / b.norm().clamp_min(1e-300))
