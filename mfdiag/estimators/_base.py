"""What an estimator is: the residual or the loss it regresses, its paper, its needs and its place in the plane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # files of estimators stay importable without torch, so that listing them is fast
    from torch import Tensor

    from mfdiag.fields import DifferentiableNetwork, Fields

__all__ = ["Estimator", "Needs", "squared_norm"]


@dataclass(frozen=True)
class Needs:
    """What a training step of a method computes for each sample, and what it needs besides the network.

    Attributes:
        trained: Evaluations of the network that carry a gradient.
        trained_jvps: Directional derivatives of the network that carry a gradient.
        forwards: Evaluations without gradient, of any network.
        jvps: Directional derivatives without gradient.
        networks: Other networks, among "ema", "head" and "teacher".
        normal: Whether it needs independent pairs from a source N(0, I) on the linear path.
        pair: Whether it needs the sample's own ends x_0 and x_1.
        uniform: Whether it draws a uniform number for each sample.
        others: Whether it draws other data or samples for each sample.
        same_condition: Whether it needs other data that have the sample's condition.
    """

    trained: int = 1
    trained_jvps: int = 0
    forwards: int = 0
    jvps: int = 0
    networks: tuple[str, ...] = ()
    normal: bool = False
    pair: bool = False
    uniform: bool = False
    others: bool = False
    same_condition: bool = False

    @property
    def cost(self) -> int:
        """Cost of a training step in forward passes: a backward pass counts two, a derivative one more."""
        return 3 * (self.trained + self.trained_jvps) + self.forwards + self.jvps


@dataclass(frozen=True)
class Estimator:
    """One method of the family, defined by exactly one of `residual` and `loss` (docs/theory.md#family).

    Attributes:
        name: Name on the command line; for a built-in estimator also the name of its file.
        title: One line for `mfdiag list estimators`. If the method takes arguments, the line ends with their form, as
            in `alpha_flow:[alpha=0.5]`.
        paper: Where the method comes from.
        formula: The residual or the loss in plain text, in the symbols of docs/theory.md#notation.
        residual: Fields -> e [n, *shape]. The gradient of a sample is 2 w (du/dtheta)^T e at (x_t, r, t): that of
            regressing u on a target under stop-gradient.
        coefficients: (beta, gamma) if the method is a point of the plane (docs/theory.md#plane), else None.
        parse: Turns the text after "NAME:" into an estimator; None if the method takes no arguments.
        loss: (fields, network) -> loss of each sample [n]. Its gradient is taken through everything that `network`
            evaluates; `fields` carry none. For methods that differentiate something else than u(x_t, r, t).
        needs: What a training step computes, which gives cost and availability.
        affine: Whether the gradient is affine in v_c, for a method that is not a point of the plane.
        unbiased: Whether the mean gradient given x_t is MeanFlow's by construction.
        template: Whether the name alone is incomplete, so that arguments must follow.
        alternative: Specification of a form of the method that needs no other network, for messages; "" if none does.
    """

    name: str
    title: str
    paper: str
    formula: str
    residual: Callable[[Fields], Tensor] | None = None
    coefficients: tuple[float, float] | None = None
    parse: Callable[[str], Estimator] | None = None
    loss: Callable[[Fields, DifferentiableNetwork], Tensor] | None = None
    needs: Needs = field(default_factory=Needs)
    affine: bool = False
    unbiased: bool = False
    template: bool = False
    alternative: str = ""

    @property
    def is_affine(self) -> bool:
        """Whether the gradient at v_c = v is the conditional mean of the gradient."""
        return self.affine or self.coefficients is not None


def squared_norm(e: Tensor) -> Tensor:
    """|e|^2 of each sample: [n, *shape] -> [n]."""
    return e.flatten(1).square().sum(1)
