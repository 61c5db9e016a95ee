"""One forward pass whose graph is kept, so that directional derivatives and other backward passes share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mfdiag.derivatives.attention import twice_differentiable
from mfdiag.derivatives.reverse_mode import jvps_by_double_backward, vjp
from mfdiag.fields.inputs import Inputs

__all__ = ["CheckedJvp", "ForwardGraph", "forward_graph"]

_ROUNDING = {torch.float64: 1e-10}  # relative error of <J v, w> that rounding explains
_ROUNDING_OTHERWISE = 1e-4


class CheckedJvp(NamedTuple):
    """Derivatives that passed `ForwardGraph.check_jvp`, with the inputs and tangents they belong to.

    `dx` [m, n, *shape] and `dt` [m, n] are the tangents; `derivatives` [m, n, *shape] are those of u along them.
    """

    inputs: Inputs
    dx: Tensor
    dt: Tensor
    derivatives: Tensor


@dataclass(frozen=True)
class ForwardGraph:
    """u [n, *shape] with its graph, and the inputs it was computed from; x and t may require a gradient."""

    u: Tensor
    inputs: Inputs

    @property
    def reversible(self) -> bool:
        """Whether the graph leads back to x and t, so that `derivatives` can be computed."""
        return self.inputs[0].requires_grad

    def derivatives(self, dx: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
        """Compute u and its derivatives by double backward, on the graph that other backward passes use anyway.

        Args:
            dx: Tangents of x, [m, n, *shape].
            dt: Tangents of t, [m, n].

        Returns:
            u [n, *shape] without its graph, and m derivatives [m, n, *shape].
        """
        x, _, t, _ = self.inputs
        derivatives = jvps_by_double_backward(self.u, [x, t], zip(dx, dt, strict=True))
        return self.u.detach(), torch.stack(derivatives)

    def check_jvp(self) -> CheckedJvp | None:
        """A derivative along random signs v (with dt = 1); None if double backward does not give J v.

        It does where <J v, w> = <v, J^T w> for random w, up to rounding.
        """
        x, r, t, labels = self.inputs
        generator = torch.Generator().manual_seed(0)
        dx, w = ((torch.randint(0, 2, a.shape, generator=generator) * 2 - 1).to(a) for a in (x, self.u))
        dt = torch.ones_like(t)
        derivatives = self.derivatives(dx[None], dt[None])[1]
        gx, gt = vjp([self.u], [w], [x, t], retain_graph=True)
        parts = (derivatives[0] * w).double(), (dx * gx).double(), (dt * gt).double()
        scale = sum(part.abs().sum() for part in parts)
        error = (parts[0].sum() - parts[1].sum() - parts[2].sum()).abs()
        rounding = _ROUNDING.get(w.dtype, _ROUNDING_OTHERWISE)
        if not error / (scale + torch.finfo(w.dtype).tiny) <= rounding:  # NaN too
            return None
        return CheckedJvp((x.detach(), r, t.detach(), labels), dx[None], dt[None], derivatives)


def forward_graph(module: nn.Module, inputs: Inputs) -> ForwardGraph:
    """Evaluate a network with a graph to x and t.

    Args:
        module: The network, u(x, r, t, labels).
        inputs: Where it is evaluated.

    Returns:
        The forward pass, with x and t detached from whatever they were computed from.
    """
    x, r, t, labels = inputs
    x, t = (a.detach().requires_grad_() for a in (x, t))
    with torch.enable_grad(), twice_differentiable():
        return ForwardGraph(module(x, r, t, labels), (x, r, t, labels))
