"""Samples of a model: from noise at t = 1 to data at t = 0."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mfdiag.errors import InputError, first_line, is_out_of_memory
from mfdiag.fields.inputs import require_velocity
from mfdiag.flow.conditions import Condition

__all__ = ["Generate", "generate_samples", "sample"]

Generate = Callable[[Tensor, Condition], Tensor]
"""(noise [n, *shape], condition) -> samples [n, *shape]; the condition is labels [n], `Conditions` or None."""


@torch.no_grad()
def sample(velocity: Callable[..., Tensor], noise: Tensor, nfe: int = 1, labels: Condition = None) -> Tensor:
    """Sample a model of the average velocity in `nfe` equal steps from t = 1 to t = 0.

    Args:
        velocity: u(x [n, *shape], r [n], t [n], labels [n] or None) -> [n, *shape].
        noise: Samples at t = 1, [n, *shape].
        nfe: Number of steps, which is also the number of evaluations per sample.
        labels: Class labels [n], `Conditions` of a network that takes arrays by name, or None.

    Returns:
        Samples at t = 0, [n, *shape].

    Raises:
        InputError: The velocity is not a tensor of the shape of x.
    """
    x = noise
    for step in range(nfe):
        t, r = 1 - step / nfe, 1 - (step + 1) / nfe
        start, end = (torch.full(x.shape[:1], time, dtype=x.dtype, device=x.device) for time in (r, t))
        u = require_velocity("The model", velocity(x, start, end, labels), x)  # another shape would broadcast
        x = x - (t - r) * u  # arXiv 2505.13447, equation 12: x_r = x_t - (t-r) u
    return x


def generate_samples(generate: Generate, noise: Tensor, condition: Condition) -> Tensor:
    """Call a generator and check its result.

    Args:
        generate: The generator.
        noise: Noise [n, *shape].
        condition: Labels [n], `Conditions` or None.

    Returns:
        Samples [n, *shape].

    Raises:
        InputError: The generator fails, or returns something of another shape.
    """
    expected = f"Expected a model that maps noise of shape {list(noise.shape)} to samples of that shape"
    try:
        with torch.no_grad():
            x = generate(noise, condition)
    except (RuntimeError, TypeError, ValueError, IndexError, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        reason = first_line(error)
        raise InputError(f"{expected}, but it failed: {reason}. Check --data and --model.") from error
    if not isinstance(x, Tensor) or x.shape != noise.shape:
        returned = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"{expected}, but it returned {returned}. Check --data and --model.")
    return x
