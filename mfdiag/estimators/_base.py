"""What an estimator is: a residual of the regression on u(x_t, r, t), its paper and its place in the plane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # estimator files stay importable without torch, so that listing them is instant
    from torch import Tensor

    from mfdiag.estimators._fields import Fields

__all__ = ["Estimator"]


@dataclass(frozen=True)
class Estimator:
    """One method of the family.

    `residual` maps the fields of a batch to e [n, *shape]; the per-sample gradient is 2 w (du/dtheta)^T e.
    `coefficients` are (beta, gamma) where the method is a point of the plane (theory, section 2). `parse`, where given,
    turns the text after "NAME:" into an estimator.
    """

    name: str
    title: str
    paper: str
    formula: str
    residual: Callable[[Fields], Tensor]
    coefficients: tuple[float, float] | None = None
    parse: Callable[[str], Estimator] | None = None
