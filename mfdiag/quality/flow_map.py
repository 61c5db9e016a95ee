"""The exact flow map of data with a closed form, and how far a model's average velocity is from it."""

from __future__ import annotations

import torch
from torch import Tensor
from torchdiffeq import odeint

from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import Data, GaussianData, MixtureData
from mfdiag.flow.draw import posterior_of

__all__ = ["exact_flow_map"]


def exact_flow_map(data: Data, x: Tensor, start: Tensor, end: Tensor, *, steps: int = 64) -> Tensor:
    """Follow the exact flow dx/dt = v(x, t) on the linear path from N(0, I), from time `start` to `end`.

    (x_t - x_r) / (t - r) is then the exact average velocity u(x_t, r, t) (docs/theory.md#identity). Runge and Kutta's
    method of order four takes `steps` equal steps for each sample.

    Args:
        data: Gaussian or mixture data, whose velocity is known in closed form.
        x: Points [n, *shape] at the start.
        start: Times [n].
        end: Times [n], not above `start`.
        steps: Steps from start to end.

    Returns:
        Points [n, *shape] at the end, float64.

    Raises:
        InputError: The velocity of the data is not known in closed form.
    """
    if not isinstance(data, GaussianData | MixtureData):
        raise InputError(
            f"The exact flow map needs data with a closed form, such as mixture:2,8 or gaussian:2,0,1, but got "
            f"{data.name}. Compare samples with the data instead, as `mfdiag quality` does."
        )
    posterior = posterior_of(data)
    assert posterior is not None
    uniforms = torch.full((len(x), posterior.width), 0.5, dtype=torch.float64)  # of the draw, which is not used
    shape = (-1, *[1] * (x.ndim - 1))
    begin, length = start.double(), (end - start).double()

    def rate(share: Tensor, point: Tensor) -> Tensor:
        return posterior(point, begin + share * length, uniforms).mean * length.reshape(shape)

    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    with torch.no_grad():
        return odeint(rate, x.double(), times, method="rk4", options={"step_size": 1 / steps})[-1]
