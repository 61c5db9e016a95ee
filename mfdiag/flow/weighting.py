"""Per-sample weights of the loss, always under stop-gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from mfdiag.errors import InputError, did_you_mean
from mfdiag.flow.specs import format_spec, parse_arguments

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["Reduction", "Weighting", "parse_weighting"]

Array = TypeVar("Array", "np.ndarray", "Tensor")
Reduction = Literal["sum", "mean", "square"]


@dataclass(frozen=True)
class Weighting:
    """The loss L / sg(L + eps)^p of a sample (MeanFlow, section 4); p = 0 is no weighting.

    With S = |e|^2 over the d coordinates of its residual, L is S ("sum"), S / d ("mean", whose gradient carries the
    1/d too) or S^2 ("square"). As L only enters through S, the gradient is that of u regressed under a weight w of S.
    """

    p: float = 0.0
    eps: float = 1e-3
    reduction: Reduction = "sum"

    @property
    def name(self) -> str:
        """The canonical specification: the default reduction is left out."""
        if not self.p:
            return "none"
        return format_spec("adaptive", self.p, self.eps) + ("" if self.reduction == "sum" else f",{self.reduction}")

    def of(self, residual2: Array, dim: int) -> Array:
        """w [n] from S = |e|^2 [n] of residuals with `dim` coordinates: the gradient is 2 w (du/dtheta)^T e."""
        # d/dtheta L / sg(L + eps)^p = (L + eps)^-p (dL/dS) dS/dtheta and dS/dtheta = 2 (du/dtheta)^T e
        scale = self._scale(self._reduced(residual2, dim))
        return {"sum": scale, "mean": scale / dim, "square": 2 * residual2 * scale}[self.reduction]

    def loss(self, residual2: Tensor, dim: int) -> Tensor:
        """The loss [n] itself, differentiable in S [n]; where S is no square it may be below 0, and weighs as 0."""
        loss = self._reduced(residual2, dim)
        return loss * self._scale(loss.detach().clamp_min(0))

    def __call__(self, residual: Tensor, part: Tensor | None = None) -> Tensor:
        """Weighted residual w e, shape of `residual` [n, *shape]; or w times a `part` of it."""
        part = residual if part is None else part
        if not self.p:
            return part
        weight = self.of(residual.flatten(1).square().sum(1), residual[0].numel())
        return weight.view(-1, *[1] * (residual.ndim - 1)) * part

    def _reduced(self, residual2: Array, dim: int) -> Array:
        return {"sum": residual2, "mean": residual2 / dim, "square": residual2 * residual2}[self.reduction]

    def _scale(self, loss: Array) -> Array:
        return (loss + self.eps) ** -self.p


def parse_weighting(spec: str) -> Weighting:
    """`none` or `adaptive:p,eps`, which may end in `,sum`, `,mean` or `,square`."""
    name = spec.partition(":")[0]
    if name == "none":
        parse_arguments(spec, {})
        return Weighting()
    if name != "adaptive":
        raise did_you_mean("weighting", name, ("none", "adaptive"))
    numbers, _, last = spec.rpartition(",")
    reduction: Reduction = "sum"
    if last in get_args(Reduction):
        spec, reduction = numbers, last  # type: ignore[assignment]
    given = parse_arguments(spec, {"p": 1.0, "eps": 1e-3})
    if not 0 <= given["p"] <= 10 or not given["eps"] > 0:
        raise InputError(f"Bad weighting {spec!r}: p must lie in [0, 10] and eps above 0, as in adaptive:1,0.001.")
    if not given["p"] and reduction != "sum":
        raise InputError(f"Bad weighting {spec!r}: with p = 0 there is no weight to reduce for; say none.")
    return Weighting(given["p"], given["eps"], reduction)
