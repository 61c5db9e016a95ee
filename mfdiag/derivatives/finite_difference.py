"""Central differences for networks that can only be evaluated; the step is the one whose measured error is least."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from mfdiag.derivatives.differentiable_jvp import Point
from mfdiag.fields.inputs import Inputs
from mfdiag.flow.conditions import Condition, map_condition
from mfdiag.models.precision import measured_copy

__all__ = ["CentralDifference", "central_difference", "difference_quotients", "jvp_by_difference", "quotient_along"]

_STEPS = tuple(2.0 ** -(4 + 2 * k) for k in range(14))  # from 0.06 to 1e-9, each a quarter of the one before
_TINY = 1e-30  # keeps a division by 0 finite


@dataclass(frozen=True)
class CentralDifference:
    """u and its derivatives, by central differences of step `step`.

    Attributes:
        module: The network, evaluated for u itself.
        network: A copy of it in `dtype`, evaluated for the differences.
        dtype: float64, or the run's own precision where the network supports no other.
        step: h, in units of time.
        error: Relative error of (t-r) times the derivative, as measured on a few samples.
        step_with_gradient: h of differences that carry a gradient, which are computed in the run's own precision.
        within_times: Whether evaluations stay at times in [r, 1].
    """

    module: nn.Module
    network: nn.Module
    dtype: torch.dtype
    step: float
    error: float
    step_with_gradient: float
    within_times: bool = True

    @property
    def name(self) -> str:
        return f"difference:{self.step:g}"

    def __call__(
        self, x: Tensor, r: Tensor, t: Tensor, condition: Condition, dx: Tensor, dt: Tensor
    ) -> tuple[Tensor, Tensor]:
        """u [n, *shape] and its derivatives [m, n, *shape] along dx [m, n, *shape], dt [m, n], which is 0 or 1."""
        with torch.no_grad():
            u = self.module(x, r, t, condition).detach()  # some networks turn gradients on within
            derivatives = difference_quotients(
                self.network, self.dtype, (x, r, t, condition), dx, dt, self.step, self.within_times
            )
        return u, derivatives.detach().to(u)

    def jvp(self, evaluate: Callable[..., Tensor], point: Point, tangents: Point) -> tuple[Tensor, Tensor]:
        """Compute u and its difference quotient, as `jvp_by_difference` does with this object's step.

        Args:
            evaluate: The network, evaluate(x, r, t) -> u.
            point: Where it is evaluated.
            tangents: Tangents of x, r and t.

        Returns:
            u and its difference quotient, both [n, *shape] with a gradient to the parameters.
        """
        return jvp_by_difference(evaluate, point, tangents, self.step_with_gradient, self.within_times)


def central_difference(
    module: nn.Module, inputs: Inputs, dx: Tensor, dt: Tensor, step: float | None = None
) -> CentralDifference:
    """Prepare central differences of a network, and measure their error on a few samples.

    Args:
        module: The network, u(x, r, t, labels).
        inputs: The samples on which the error is measured.
        dx: Tangents of x, [m, n, *shape].
        dt: Tangents of t, [m, n], each 0 or 1.
        step: A step above 0, used on both sides at every time, as in training with differences. None chooses the step
            of least error and keeps evaluations at times in [r, 1].

    Returns:
        The difference, in float64 unless a layer of the network supports only its own precision.
    """
    run_dtype = inputs[0].dtype
    network, dtype = measured_copy(module, inputs[0].device, torch.float64), torch.float64
    with torch.no_grad():
        try:
            network(*_cast(inputs, dtype))
        except RuntimeError:
            network, dtype = module, run_dtype
        best, error = _step_of_least_error(network, dtype, inputs, dx, dt, step)
        step_with_gradient = best
        if run_dtype != dtype and step is None:
            step_with_gradient = _step_of_least_error(module, run_dtype, inputs, dx, dt, None)[0]
    return CentralDifference(module, network, dtype, best, error, step_with_gradient, step is None)


def _step_of_least_error(
    network: nn.Module, dtype: torch.dtype, inputs: Inputs, dx: Tensor, dt: Tensor, step: float | None
) -> tuple[float, float]:
    """The step (`step` itself unless None), and the relative error of (t-r) times the derivatives at that step."""
    # D(h) = D + c h^2 + ... + rounding / h. A quarter of the step removes 15/16 of the first error and makes the second
    # four times as large, so |D(h) - D(h/4)| is, within 16/15, no less than the larger of the two errors of D(h): its
    # least value shows which step is best, and how good it is. Steps that round away in x + h dx give a difference of
    # 0, but cannot be better than rounding of u, eps |u| / h.
    x, r, t, _ = inputs
    gap = (t - r).to(dtype).view(-1, *[1] * (x.ndim - 1))
    rounding = torch.finfo(dtype).eps * (gap * network(*_cast(inputs, dtype))).norm()
    steps = _STEPS if step is None else (step, step / 4)
    quotients = [gap * difference_quotients(network, dtype, inputs, dx, dt, h, step is None) for h in steps]
    errors = []
    for h, (coarse, fine) in zip(steps, pairwise(quotients), strict=False):
        distance, size = (a.flatten(1).norm(dim=1) for a in (coarse - fine, fine))
        error = (16 / 15 * distance).maximum(rounding / h) / (size + _TINY)
        errors.append(float(error.nan_to_num(torch.inf).max()))
    best = min(range(len(errors)), key=errors.__getitem__)
    return steps[best], errors[best]


def difference_quotients(
    network: nn.Module,
    dtype: torch.dtype,
    inputs: Inputs,
    dx: Tensor,
    dt: Tensor,
    step: float,
    within_times: bool = True,
) -> Tensor:
    """Compute difference quotients of a network.

    Args:
        network: The network, with parameters in `dtype`.
        dtype: The precision of the evaluations.
        inputs: Where derivatives are wanted.
        dx: Tangents of x, [m, n, *shape].
        dt: Tangents of t, [m, n], each 0 or 1.
        step: h, in units of time.
        within_times: Keep times in [r, 1], so that the quotient is one-sided near these ends.

    Returns:
        m quotients [m, n, *shape] in `dtype`.
    """
    x, r, t, condition = _cast(inputs, dtype)
    column = (-1, *[1] * (x.ndim - 1))
    quotients = []
    for v, speed in zip(dx.to(dtype), dt.to(dtype), strict=True):
        low, high = _ends(t, r, torch.ones_like(t), speed * within_times, step)
        values = [network(x + s.view(column) * v, r, t + s * speed, condition) for s in (low, high)]
        quotients.append((values[1] - values[0]) / (high - low).clamp_min(_TINY).view(column))
    return torch.stack(quotients)


def _ends(time: Tensor, least: Tensor, most: Tensor, speed: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Steps s [n] back and forth that keep time + s speed in [least, most]; `speed` is 1, or 0 for no bounds."""
    whole = torch.full_like(time, step)
    low, high = (least - time).maximum(-whole), (most - time).minimum(whole)
    return torch.where(speed != 0, low, -whole), torch.where(speed != 0, high, whole)


def jvp_by_difference(
    evaluate: Callable[..., Tensor], point: Point, tangents: Point, step: float, within_times: bool = True
) -> tuple[Tensor, Tensor]:
    """Compute u and its difference quotient along tangents.

    Args:
        evaluate: The network, evaluate(x, r, t) -> u.
        point: Where it is evaluated.
        tangents: Tangents of x, r and t. That of r or that of t is 0, and the other is 0 or 1.
        step: h, in units of time.
        within_times: Keep times ordered and in [0, 1].

    Returns:
        u and its difference quotient, both [n, *shape] with a gradient to the parameters.
    """
    return evaluate(*point), quotient_along(evaluate, point, tangents, step, within_times)


def quotient_along(
    evaluate: Callable[..., Tensor], point: Point, tangents: Point, step: float, within_times: bool = True
) -> Tensor:
    """Compute the difference quotient alone, from two evaluations.

    Args:
        evaluate: As for `jvp_by_difference`.
        point: As for `jvp_by_difference`.
        tangents: As for `jvp_by_difference`.
        step: h, in units of time.
        within_times: Keep times ordered and in [0, 1].

    Returns:
        The quotient [n, *shape].
    """
    (x, r, t), (dx, dr, dt) = point, tangents
    column = (-1, *[1] * (x.ndim - 1))
    ends_of_r = _ends(r, torch.zeros_like(r), t, dr * within_times, step)
    ends_of_t = _ends(t, r, torch.ones_like(t), dt * within_times, step)
    low, high = ends_of_r[0].maximum(ends_of_t[0]), ends_of_r[1].minimum(ends_of_t[1])
    values = [evaluate(x + s.view(column) * dx, r + s * dr, t + s * dt) for s in (low, high)]
    return (values[1] - values[0]) / (high - low).clamp_min(_TINY).view(column)


def _cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    x, r, t, condition = inputs
    x = x.to(dtype)  # labels with guidance are floating-point numbers too
    return x, r.to(dtype), t.to(dtype), map_condition(condition, lambda v: v.to(x) if v.is_floating_point() else v)
