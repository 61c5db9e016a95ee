"""Paths from data to noise: stochastic interpolants x_t = alpha(t) x_0 + sigma(t) x_1 (arXiv 2303.08797)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from math import pi
from typing import TYPE_CHECKING

from mfdiag.errors import InputError, did_you_mean
from mfdiag.flow.specs import parse_arguments
from mfdiag.usercode import call_user_factory, is_user_code

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DDPM", "LINEAR", "PATHS", "TRIGONOMETRIC", "Path", "Schedule", "end_note", "parse_path"]

PATHS: dict[str, str] = {
    "linear": "x_t = (1 - t) x_0 + t x_1, the path of MeanFlow and rectified flow",
    "trigonometric": "x_t = cos(pi t / 2) x_0 + sin(pi t / 2) x_1, which keeps the variance of standardized data",
    "ddpm": "DDPM's linear schedule of 1,000 steps, step 999 t: x_t = a x_0 + sqrt(1 - a^2) x_1 with a from 0.99995 to "
    "0.0064",
    "FILE.py:factory": "your own path: the factory returns two functions alpha(t), sigma(t) of a tensor of times",
}

_CHECKED_TIMES = 257  # times at which a user's path is checked
_END_TOLERANCE = 1e-6  # of alpha and sigma at t = 0 and t = 1: room for rounding in float32 code
_MOST_LEFT = 0.05  # of the data at t = 1, and of the noise at t = 0; the schedules of diffusion models leave some
_DDPM_STEPS, _DDPM_BETAS, _DDPM_DEGREE = 1000, (1e-4, 0.02), 9

Schedule = Callable[["Tensor"], "Tensor"]
"""A differentiable function of times [n], elementwise."""


@dataclass(frozen=True)
class Path:
    """x_t = alpha(t) x_0 + sigma(t) x_1: data at t = 0, noise at t = 1 (docs/theory.md#identity).

    alpha falls from 1 to 0 and sigma rises from 0 to 1. On any such path x_r = x_t - (t - r) u(x_t, r, t), so one step
    is x_0 = x_1 - u(x_1, 0, 1). Schedules of diffusion models end near these values; `end_note` says what that costs.

    Attributes:
        name: The specification `parse_path` reads.
        alpha: The factor of x_0.
        sigma: The factor of x_1.
        slopes: The derivatives alpha' and sigma', or None to compute them by forward mode.
    """

    name: str
    alpha: Schedule = field(repr=False)
    sigma: Schedule = field(repr=False)
    slopes: tuple[Schedule, Schedule] | None = field(default=None, repr=False)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha'(t) and sigma'(t), each of the shape of t [n]."""
        if self.slopes is not None:
            return self.slopes[0](t), self.slopes[1](t)
        from torch import ones_like
        from torch.func import jvp

        return jvp(lambda time: (self.alpha(time), self.sigma(time)), (t,), (ones_like(t),))[1]

    def point(self, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        """Points of the path.

        Args:
            x0: Data [n, *shape].
            x1: Noise [n, *shape].
            t: Times [n] in [0, 1].

        Returns:
            x_t [n, *shape].
        """
        time = t.view(-1, *[1] * (x0.ndim - 1))
        return self.alpha(time) * x0 + self.sigma(time) * x1

    def velocity(self, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        """The conditional velocity v_c = alpha'(t) x_0 + sigma'(t) x_1.

        Args:
            x0: Data [n, *shape].
            x1: Noise [n, *shape].
            t: Times [n] in [0, 1].

        Returns:
            v_c [n, *shape].
        """
        alpha, sigma = (rate.view(-1, *[1] * (x0.ndim - 1)) for rate in self.rates(t))
        return alpha * x0 + sigma * x1


@cache
def _ddpm() -> tuple[Schedule, Schedule]:
    """alpha and sigma of DDPM's linear schedule (arXiv 2006.11239, section 4)."""
    import numpy as np
    import torch

    # log abar_i = sum_(j <= i) log(1 - beta_j) is close to a quadratic of i. This polynomial meets all 1,000 values to
    # 1e-9, and has a derivative between them, which a path needs.
    log_abar = np.log1p(-np.linspace(*_DDPM_BETAS, _DDPM_STEPS)).cumsum()
    series = np.polynomial.Polynomial.fit(np.linspace(0, 1, _DDPM_STEPS), log_abar, _DDPM_DEGREE, domain=[-1, 1])
    powers = [float(power) for power in series.coef[::-1]]

    def logarithm(t: Tensor) -> Tensor:
        value = torch.zeros_like(t)
        for power in powers:
            value = value * t + power
        return value

    return (lambda t: (logarithm(t) / 2).exp()), (lambda t: (-torch.expm1(logarithm(t))).sqrt())


DDPM = Path("ddpm", lambda t: _ddpm()[0](t), lambda t: _ddpm()[1](t))
LINEAR = Path(
    "linear", lambda t: 1 - t, lambda t: t, (lambda t: t.new_full(t.shape, -1), lambda t: t.new_ones(t.shape))
)
TRIGONOMETRIC = Path(
    "trigonometric",
    lambda t: (t * (pi / 2)).cos(),
    lambda t: (t * (pi / 2)).sin(),
    (lambda t: -(pi / 2) * (t * (pi / 2)).sin(), lambda t: (pi / 2) * (t * (pi / 2)).cos()),
)
_BUILT_IN = {path.name: path for path in (LINEAR, TRIGONOMETRIC, DDPM)}


def parse_path(spec: str) -> Path:
    """The path of a specification: a key of `PATHS`, or a user's factory that returns (alpha, sigma).

    Raises InputError for an unknown name, and for functions that do not define a path. A path has
    alpha(0) = sigma(1) = 1 and alpha(1) = sigma(0) = 0 up to 0.05, finite values, and a ratio sigma / alpha that rises
    on (0, 1).
    """
    if is_user_code(spec):
        functions = call_user_factory(spec, "--path")
        if not (isinstance(functions, tuple | list) and len(functions) == 2 and all(map(callable, functions))):
            raise InputError(
                f"Expected {spec} to return two functions (alpha, sigma) of t, but it returned "
                f"{type(functions).__name__}. Return a tuple of two functions."
            )
        return _checked(Path(spec, *functions))
    name = spec.partition(":")[0]
    if name not in _BUILT_IN:
        raise did_you_mean("path", name, PATHS)
    parse_arguments(spec, {})
    return _BUILT_IN[name]


def end_note(path: Path) -> str | None:
    """What it costs that a path does not end in pure data and pure noise; None where it does."""
    import torch

    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    (_, alpha), (sigma, last) = path.alpha(ends).tolist(), path.sigma(ends).tolist()
    if max(alpha, sigma) <= _END_TOLERANCE:
        return None
    # KL of N(alpha x_0, last^2) from N(0, 1), in the mean over data of variance 1, is above that of their mixture
    nats = (alpha**2 + last**2 - 1) / 2 - math.log(last)
    return (
        f"path {path.name} leaves alpha(1) = {alpha:.2g} of the data at t = 1 and sigma(0) = {sigma:.2g} of the noise "
        "at t = 0. Points and velocities are those of this path, so gradients and variances are exact. Samples drawn "
        f"from pure noise start from a distribution that is off by at most {nats:.1g} nats per coordinate (for data of "
        f"variance 1), and end with noise of standard deviation {sigma:.2g}."
    )


def _checked(path: Path) -> Path:
    import torch

    t = torch.linspace(0, 1, _CHECKED_TIMES, dtype=torch.float64)
    try:
        (alpha, sigma), rates = (path.alpha(t), path.sigma(t)), path.rates(t)
    except Exception as error:  # user code can raise anything
        raise InputError(
            f"Path {path.name} cannot be evaluated on a tensor of times: {type(error).__name__}: {error}. Use torch "
            "functions of t."
        ) from error
    if alpha.shape != t.shape or sigma.shape != t.shape:
        raise InputError(f"Path {path.name}: alpha and sigma must map times [n] to [n]. Use elementwise functions.")
    ends = (float(alpha[0]), float(alpha[-1]), float(sigma[0]), float(sigma[-1]))
    if any(abs(end - expected) > _MOST_LEFT for end, expected in zip(ends, (1, 0, 0, 1), strict=True)):
        raise InputError(
            f"Path {path.name} must lead from data at t = 0 to noise at t = 1: expected alpha(0), alpha(1), sigma(0), "
            f"sigma(1) = 1, 0, 0, 1, got {', '.join(f'{end:.4g}' for end in ends)}. Correct the functions."
        )
    # d/dt (sigma / alpha) has the sign of alpha sigma' - alpha' sigma
    valid = ((alpha > 0) & (sigma > 0) & (alpha * rates[1] - rates[0] * sigma > 0))[1:-1]
    if not valid.all():
        raise InputError(
            f"Path {path.name} is not valid at t = {float(t[1:-1][~valid][0]):.3g}: alpha and sigma must be finite and "
            "above 0, and sigma / alpha must rise. Correct the functions."
        )
    return path
