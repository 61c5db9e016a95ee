"""Built-in architectures by name. torch is imported only when one of them is built."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mfdiag.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "PREDICTIONS", "build_model"]

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


def build_model(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a new network of the built-in architecture `name`, with forward(x, r, t, y=None) -> u.

    Raises InputError for an unknown name and for arguments that the constructor does not take.
    """
    if name not in MODELS:
        raise did_you_mean("architecture", name, MODELS)
    module, attribute = MODELS[name][0].split(":")
    constructor = getattr(importlib.import_module(module), attribute)
    try:
        return constructor(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"Architecture {name!r} cannot be built from the arguments {dict(arguments)}: {error}; "
            f"it takes {MODELS[name][1].rpartition('(')[2].rstrip(')')}."
        ) from error
