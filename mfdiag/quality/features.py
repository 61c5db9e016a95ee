"""Features in which metrics are computed: a user's map, or the samples themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mfdiag.errors import InputError, first_line, is_out_of_memory
from mfdiag.usercode import call_user_factory

__all__ = ["Features", "flat_features", "load_features"]

Features = Callable[[Tensor], Tensor]
"""Samples [n, *shape] -> features [n, ...]."""


def load_features(spec: str, device: str, dtype: torch.dtype) -> Features:
    """Load a user's feature map; a module is put in eval mode.

    Args:
        spec: `FILE.py:factory` or `pkg.module:factory`, a function without arguments that returns the map.
        device: Device of the samples that the map gets.
        dtype: Their dtype.

    Returns:
        The map.

    Raises:
        InputError: The factory cannot be called, or what it returns is not callable.
    """
    features = call_user_factory(spec, "--features")
    if not callable(features):
        raise InputError(
            f"Expected {spec} to return a map from samples to features, but it returned {type(features).__name__}. "
            "Return a function or a torch.nn.Module."
        )
    return features.eval().to(device, dtype) if isinstance(features, nn.Module) else features


def flat_features(x: Tensor, features: Features | None) -> Tensor:
    """Features [n, d] of samples [n, *shape]; without a map, the flattened samples.

    Raises:
        InputError: The map fails, or does not return a row for each sample.
    """
    if features is None:
        return x.flatten(1)
    try:
        with torch.no_grad():
            rows = features(x)
    except (Exception, SystemExit) as error:  # the user's code
        if is_out_of_memory(error):
            raise
        reason = first_line(error)
        raise InputError(
            f"Expected --features to map samples of shape {list(x.shape)} to rows of features, but it raised "
            f"{type(error).__name__}: {reason}. Correct the map."
        ) from error
    if not isinstance(rows, Tensor) or rows.shape[:1] != x.shape[:1]:
        returned = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise InputError(
            f"--features must map {len(x)} samples to {len(x)} rows of features, but it returned {returned}. Correct "
            "the map."
        )
    return rows.reshape(len(x), -1)
