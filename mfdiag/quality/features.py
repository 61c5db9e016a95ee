"""Feature maps of the user's own, under which metrics are taken."""

from __future__ import annotations

import torch
from torch import nn

from mfdiag.errors import InputError
from mfdiag.quality.prepared import Features
from mfdiag.usercode import call_user_factory

__all__ = ["load_features"]


def load_features(spec: str, device: str, dtype: torch.dtype) -> Features:
    """The map that the factory `FILE.py:factory` or `pkg.module:factory` returns; a module is put in eval mode.

    It takes samples [n, *shape] on `device` in `dtype` and returns features [n, ...]. Raises InputError as
    `call_user_factory` does, and if the result cannot be called.
    """
    features = call_user_factory(spec, "--features")
    if not callable(features):
        raise InputError(
            f"Expected {spec} to return a map from samples to features, but it returned {type(features).__name__}; "
            "return a function or a torch.nn.Module."
        )
    return features.eval().to(device, dtype) if isinstance(features, nn.Module) else features
