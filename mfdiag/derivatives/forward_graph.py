"""One forward pass whose graph is kept: directional derivatives and cotangents' backward passes share it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mfdiag.derivatives.vector_jacobian import vjp

__all__ = ["CheckedJvp", "ForwardGraph", "LayerUse"]


class LayerUse(NamedTuple):
    """One use of a layer in a forward pass; `version` tells whether its output was overwritten later."""

    layer: str
    input: Tensor
    output: Tensor
    version: int


class CheckedJvp(NamedTuple):
    """Derivatives `along` [m, n, *shape] the tangents dx [m, n, *shape], dt [m, n] at a few samples."""

    dx: Tensor
    dt: Tensor
    along: Tensor


@dataclass(frozen=True)
class ForwardGraph:
    """u [n, *shape] with its graph, the inputs x and t it can be differentiated in, and every use of a ruled layer.

    `bare` are the parameters given to each sample as a copy of its own, [n, *shape].
    """

    u: Tensor
    x: Tensor
    t: Tensor
    uses: list[LayerUse]
    bare: dict[str, Tensor]

    def derivatives(self, dx: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
        """u and its derivatives [m, n, *shape] along dx [m, n, *shape], dt [m, n].

        The backward pass w -> J^T w is linear in w, and its own derivative in w along a tangent is J times the tangent:
        forward mode at the price of one more backward pass, on the graph that the cotangents use anyway.
        """
        w = torch.zeros_like(self.u, requires_grad=True)
        pulled = vjp([self.u], [w], [self.x, self.t], create_graph=True)
        found: list[Tensor] = []
        for tangent in zip(dx, dt, strict=True):
            kept = [(p, d) for p, d in zip(pulled, tangent, strict=True) if p.requires_grad]
            outputs, directions = [p for p, _ in kept], [d for _, d in kept]
            found += vjp(outputs, directions, [w], retain_graph=True)
        return self.u.detach(), torch.stack(found)

    def check_jvp(self) -> CheckedJvp | None:
        """A derivative along random signs v (with dt = 1); None if J v cannot be had this way.

        It can where <J v, w> = <v, J^T w> for random w, up to rounding.
        """
        generator = torch.Generator().manual_seed(0)
        dx, w = ((torch.randint(0, 2, a.shape, generator=generator) * 2 - 1).to(a) for a in (self.x, self.u))
        dt = torch.ones_like(self.t)
        along = self.derivatives(dx[None], dt[None])[1]
        gx, gt = vjp([self.u], [w], [self.x, self.t], retain_graph=True)
        parts = (along[0] * w).double(), (dx * gx).double(), (dt * gt).double()
        scale = sum(part.abs().sum() for part in parts)
        off = (parts[0].sum() - parts[1].sum() - parts[2].sum()).abs()
        rounding = 1e-10 if w.dtype == torch.float64 else 1e-4
        right = off / (scale + torch.finfo(w.dtype).tiny) <= rounding
        return CheckedJvp(dx[None], dt[None], along) if right else None

    def backward(self, cotangents: Tensor) -> Iterator[Tensor]:
        """Gradients [C, n, ...] for each use's output, then for each bare parameter; cotangents [C, n, *shape].

        One at a time: laid side by side only when they are asked for, they meet memory that is already warm.
        """
        targets = [use.output for use in self.uses] + list(self.bare.values())
        if not targets or not self.u.requires_grad:
            return
        last = len(cotangents) - 1
        found = [deque(vjp([self.u], [e], targets, retain_graph=c < last)) for c, e in enumerate(cotangents)]
        for _ in targets:
            yield torch.stack([gradients.popleft() for gradients in found])
