"""Weights of single samples in the loss, always under stop-gradient."""

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

_MAX_POWER = 10  # MeanFlow uses p <= 1; a larger value than this is a typo


@dataclass(frozen=True)
class Weighting:
    """The loss L / sg(L + eps)^p of a sample (MeanFlow, section 4; docs/theory.md#weights). p = 0 means no weighting.

    With S = |e|^2, summed over the d coordinates of the residual, L is S ("sum"), S / d ("mean", whose gradient carries
    the factor 1/d too) or S^2 ("square"). L depends on S alone, so the gradient is that of the regression of u with a
    weight w(S).
    """

    p: float = 0.0
    eps: float = 1e-3
    reduction: Reduction = "sum"

    @property
    def name(self) -> str:
        """The canonical specification, without the default reduction."""
        if not self.p:
            return "none"
        return format_spec("adaptive", self.p, self.eps) + ("" if self.reduction == "sum" else f",{self.reduction}")

    def sample_weights(self, residual2: Array, dim: int) -> Array:
        """w [n] from S = |e|^2 [n] of residuals with `dim` coordinates. The gradient is 2 w (du/dtheta)^T e."""
        # d/dtheta L / sg(L + eps)^p = (L + eps)^-p (dL/dS) dS/dtheta and dS/dtheta = 2 (du/dtheta)^T e
        scale = self._scale(self._reduced(residual2, dim))
        return {"sum": scale, "mean": scale / dim, "square": 2 * residual2 * scale}[self.reduction]

    def loss(self, residual2: Tensor, dim: int) -> Tensor:
        """The loss [n] itself, differentiable in S [n]. If S is not a square, values below 0 are weighted as 0."""
        loss = self._reduced(residual2, dim)
        return loss * self._scale(loss.detach().clamp_min(0))

    def __call__(self, residual: Tensor, part: Tensor | None = None) -> Tensor:
        """Weighted residual w e, of the shape of `residual` [n, *shape]; or w times `part`, a term of the residual."""
        part = residual if part is None else part
        if not self.p:
            return part
        weight = self.sample_weights(residual.flatten(1).square().sum(1), residual[0].numel())
        return weight.view(-1, *[1] * (residual.ndim - 1)) * part

    def _reduced(self, residual2: Array, dim: int) -> Array:
        return {"sum": residual2, "mean": residual2 / dim, "square": residual2 * residual2}[self.reduction]

    def _scale(self, loss: Array) -> Array:
        return (loss + self.eps) ** -self.p


def parse_weighting(spec: str) -> Weighting:
    """`none`, or `adaptive:p,eps` with `,sum`, `,mean` or `,square` at its end. Raises InputError for anything else."""
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
    arguments = parse_arguments(spec, {"p": 1.0, "eps": 1e-3})
    if not 0 <= arguments["p"] <= _MAX_POWER or not arguments["eps"] > 0:
        raise InputError(
            f"Bad weighting {spec!r}: p must be in [0, {_MAX_POWER}] and eps above 0, as in adaptive:1,0.001."
        )
    if not arguments["p"] and reduction != "sum":
        raise InputError(f"Bad weighting {spec!r}: p = 0 is no weighting, so {reduction!r} has no effect. Pass none.")
    return Weighting(arguments["p"], arguments["eps"], reduction)
