"""Derivatives of networks that can only be evaluated: central differences, their step chosen by what it does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from mfdiag.derivatives.differentiable_jvp import Times
from mfdiag.fields.inputs import Inputs

__all__ = ["Difference", "difference_of", "differences", "jvp_by_difference"]

_STEPS = tuple(2.0 ** -(4 + 2 * k) for k in range(14))  # from 0.06 to 1e-9, each a quarter of the one before
_TINY = 1e-30


@dataclass(frozen=True)
class Difference:
    """u and its derivatives, by central differences of `step` of `network`, a copy of `module` in float64.

    `error` is that of (t-r) times the derivative, relative, as measured on a few samples; `coarse` the step for
    differences that carry a gradient, which are taken in the run's own precision. `inside` keeps times in [r, 1].
    """

    module: nn.Module
    network: nn.Module
    dtype: torch.dtype
    step: float
    error: float
    coarse: float
    inside: bool = True

    @property
    def name(self) -> str:
        return f"difference:{self.step:g}"

    def __call__(
        self, x: Tensor, r: Tensor, t: Tensor, labels: Tensor | None, dx: Tensor, dt: Tensor
    ) -> tuple[Tensor, Tensor]:
        """u [n, *shape] and its derivatives [m, n, *shape] along dx [m, n, *shape], dt [m, n], which is 0 or 1."""
        with torch.no_grad():
            u = self.module(x, r, t, labels).detach()  # some turn gradients on within
            found = differences(self.network, self.dtype, (x, r, t, labels), dx, dt, self.step, self.inside)
        return u, found.detach().to(u)

    def jvp(self, evaluate: Callable[..., Tensor], at: Times, tangents: Times) -> tuple[Tensor, Tensor]:
        """As `jvp_by_difference`."""
        return jvp_by_difference(evaluate, at, tangents, self.coarse, self.inside)


def difference_of(module: nn.Module, inputs: Inputs, dx: Tensor, dt: Tensor, step: float | None = None) -> Difference:
    """The difference quotient for `module`, of `step` or else of the step of least error at these inputs and tangents.

    Taken in float64 unless a layer of the network knows only its own precision. A step that is given is taken both ways
    wherever it leads, as in training with differences; one chosen here stays inside the times there are.
    """
    own = inputs[0].dtype
    network, dtype = copy.deepcopy(module).double(), torch.float64
    with torch.no_grad():
        try:
            network(*_as(inputs, dtype))
        except RuntimeError:
            network, dtype = module, own
        chosen, error = _least_error(network, dtype, inputs, dx, dt, step)
        coarse = chosen if own == dtype or step is not None else _least_error(module, own, inputs, dx, dt, None)[0]
    return Difference(module, network, dtype, chosen, error, coarse, step is None)


def _least_error(
    network: nn.Module, dtype: torch.dtype, inputs: Inputs, dx: Tensor, dt: Tensor, step: float | None
) -> tuple[float, float]:
    """Step, and the relative error it leaves in (t-r) times the derivatives."""
    # D(h) = D + c h^2 + ... + rounding / h. A quarter of the step removes 15/16 of the first error and makes the second
    # four times as large, so |D(h) - D(h/4)| is, within 16/15, no less than the larger of the two errors of D(h): its
    # least value says which step is best, and how good it is. Steps that get lost in x + h dx leave no difference at
    # all, but cannot do better than rounding of u, eps |u| / h.
    x, r, t, _ = inputs
    gap = (t - r).to(dtype).view(-1, *[1] * (x.ndim - 1))
    rounding = torch.finfo(dtype).eps * (gap * network(*_as(inputs, dtype))).norm()
    steps = _STEPS if step is None else (step, step / 4)
    found = [gap * differences(network, dtype, inputs, dx, dt, h, step is None) for h in steps]
    errors = []
    for h, (coarse, fine) in zip(steps, pairwise(found), strict=False):
        off, size = (a.flatten(1).norm(dim=1) for a in (coarse - fine, fine))
        error = (16 / 15 * off).maximum(rounding / h) / (size + _TINY)
        errors.append(float(error.nan_to_num(torch.inf).max()))
    best = min(range(len(errors)), key=errors.__getitem__)
    return steps[best], errors[best]


def differences(
    network: nn.Module, dtype: torch.dtype, inputs: Inputs, dx: Tensor, dt: Tensor, step: float, inside: bool = True
) -> Tensor:
    """Difference quotients [m, n, *shape] of `network` in `dtype`, along dx [m, n, *shape] and dt [m, n], 0 or 1.

    `inside` keeps times in [r, 1], so that the quotient is one-sided near these ends.
    """
    x, r, t, labels = _as(inputs, dtype)
    column = (-1, *[1] * (x.ndim - 1))
    found = []
    for along, speed in zip(dx.to(dtype), dt.to(dtype), strict=True):
        low, high = _ends(t, r, torch.ones_like(t), speed * inside, step)
        values = [network(x + s.view(column) * along, r, t + s * speed, labels) for s in (low, high)]
        found.append((values[1] - values[0]) / (high - low).clamp_min(_TINY).view(column))
    return torch.stack(found)


def _ends(time: Tensor, least: Tensor, most: Tensor, speed: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """How far to go each way [n] so that time + s speed stays in [least, most]; `speed` is 1, or 0 for no bounds."""
    whole = torch.full_like(time, step)
    low, high = (least - time).maximum(-whole), (most - time).minimum(whole)
    return torch.where(speed != 0, low, -whole), torch.where(speed != 0, high, whole)


def jvp_by_difference(
    evaluate: Callable[..., Tensor], at: Times, tangents: Times, step: float, inside: bool = True
) -> tuple[Tensor, Tensor]:
    """u = evaluate(x, r, t) and its difference quotient along the tangents, both with a gradient to the parameters.

    The tangent of r or that of t is 0, and the other 0 or 1.
    """
    (x, r, t), (dx, dr, dt) = at, tangents
    column = (-1, *[1] * (x.ndim - 1))
    moves_r = _ends(r, torch.zeros_like(r), t, dr * inside, step)
    moves_t = _ends(t, r, torch.ones_like(t), dt * inside, step)
    low, high = moves_r[0].maximum(moves_t[0]), moves_r[1].minimum(moves_t[1])
    values = [evaluate(x + s.view(column) * dx, r + s * dr, t + s * dt) for s in (low, high)]
    return evaluate(x, r, t), (values[1] - values[0]) / (high - low).clamp_min(_TINY).view(column)


def _as(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    x, r, t, labels = inputs
    told = labels if labels is None or not labels.is_floating_point() else labels.to(dtype)
    return x.to(dtype), r.to(dtype), t.to(dtype), told
