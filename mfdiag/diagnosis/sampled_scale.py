"""The scale of the data that a network was trained on, from the samples that it generates."""

from __future__ import annotations

import math

import numpy as np
import torch

from mfdiag.flow.conditions import move_condition
from mfdiag.flow.paths import LINEAR
from mfdiag.gradients.pass_types import PassSettings
from mfdiag.measures.run.subject import Subject

__all__ = ["sampled_scale"]

_STEPS = 16  # of Euler's method with u(x, t, t)
_DIGITS = 2  # of the factor: finer is not needed
_NEAR = 0.15  # relative difference from the declared scale that is no other scale
_PLAUSIBLE = 1e4  # beyond this factor sampling diverged


def sampled_scale(
    subject: Subject, samples: int, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[float, float] | None:
    """Compare the mean and the standard deviation of generated samples with those of the data.

    Args:
        subject: The network as declared, and the distribution of its samples.
        samples: Number of samples to generate.
        seed: Their seed.
        dtype: Precision of the network.

    Returns:
        Factor on the declared data and shift after that; None where they are near 1 and 0, or sampling diverges.
    """
    batch = subject.draws(seed, exact_posterior=False).batch(np.arange(samples))
    network = PassSettings(dtype=dtype).cast_network(subject.module)
    if subject.path is not LINEAR:
        return None
    x = batch.x1.to(dtype)
    with torch.no_grad():
        for k in range(_STEPS, 0, -1):
            t = torch.full((samples,), k / _STEPS, dtype=dtype)
            x = x - network(x, t, t, move_condition(batch.condition, x)) / _STEPS
    data, x = batch.x0.flatten(1), x.double().flatten(1)
    factor = float((x - x.mean(0)).norm() / (data - data.mean(0)).norm())
    if not 1 / _PLAUSIBLE < factor < _PLAUSIBLE:
        return None
    factor = round(factor, _DIGITS - 1 - math.floor(math.log10(factor)))
    spread = float((data - data.mean(0)).square().mean().sqrt())
    shift = round(float(x.mean() - factor * data.mean()), _DIGITS - 1 - math.floor(math.log10(factor * spread)))
    if abs(factor - 1) < _NEAR and abs(shift) < _NEAR * spread:
        return None
    return factor, shift
