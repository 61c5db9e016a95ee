"""Per-sample weights of the loss, always under stop-gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mfdiag.errors import InputError, did_you_mean
from mfdiag.flow.specs import parse_arguments

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["Weighting", "parse_weighting"]

Array = TypeVar("Array", "np.ndarray", "Tensor")


@dataclass(frozen=True)
class Weighting:
    """w_i = 1 / (|e_i|^2 + eps)^p with |e_i|^2 summed over coordinates; p = 0 is no weighting (MeanFlow, section 4)."""

    p: float = 0.0
    eps: float = 1e-3

    @property
    def name(self) -> str:
        return f"adaptive:{self.p:g},{self.eps:g}" if self.p else "none"

    def of(self, residual2: Array) -> Array:
        """w [n] from |e|^2 [n]."""
        return (residual2 + self.eps) ** -self.p

    def __call__(self, residual: Tensor, part: Tensor | None = None) -> Tensor:
        """Weighted residual w e, shape of `residual` [n, *shape]; or w times a `part` of it."""
        part = residual if part is None else part
        if not self.p:
            return part
        weight = self.of(residual.flatten(1).square().sum(1))
        return weight.view(-1, *[1] * (residual.ndim - 1)) * part


def parse_weighting(spec: str) -> Weighting:
    """`none` or `adaptive:p,eps`."""
    name = spec.partition(":")[0]
    if name == "none":
        parse_arguments(spec, {})
        return Weighting()
    if name == "adaptive":
        given = parse_arguments(spec, {"p": 1.0, "eps": 1e-3})
        if not 0 <= given["p"] <= 10 or not given["eps"] > 0:
            raise InputError(f"Bad weighting {spec!r}: p must lie in [0, 10] and eps above 0, as in adaptive:1,0.001.")
        return Weighting(given["p"], given["eps"])
    raise did_you_mean("weighting", name, ("none", "adaptive"))
