"""What an estimator is: the residual or the loss it regresses, its paper, its needs and its place in the plane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # estimator files stay importable without torch, so that listing them is instant
    from torch import Tensor

    from mfdiag.fields.differentiable_network import DifferentiableNetwork
    from mfdiag.fields.fields import Fields

__all__ = ["Estimator", "Needs", "squared"]


@dataclass(frozen=True)
class Needs:
    """What a training step of a method computes for each sample, and which networks it needs beside its own.

    `trained` evaluations and `trained_jvps` directional derivatives carry the gradient; `forwards` and `jvps` do not.
    `networks` are among "ema", "head" and "teacher"; `pair` asks for the sample's own x_0 and x_1, `normal` for
    independent pairs from a source N(0, I) on the linear path.
    """

    trained: int = 1
    trained_jvps: int = 0
    forwards: int = 0
    jvps: int = 0
    networks: tuple[str, ...] = ()
    normal: bool = False
    pair: bool = False

    @property
    def cost(self) -> int:
        """Cost of a step in forward passes: a backward pass costs two, a derivative one beside its evaluation."""
        return 3 * (self.trained + self.trained_jvps) + self.forwards + self.jvps


@dataclass(frozen=True)
class Estimator:
    """One method of the family, given by exactly one of `residual` and `loss`.

    `residual` maps the fields of a batch to e [n, *shape]; the per-sample gradient is 2 w (du/dtheta)^T e at
    (x_t, r, t). `loss` maps the fields and the network to the loss [n] of each sample, whose gradient is taken as it
    stands: for methods that differentiate through something else than u(x_t, r, t).
    `coefficients` are (beta, gamma) where the method is a point of the plane (theory, section 2); `affine` says that
    another one's gradient is affine in v_c too, `unbiased` that its mean given x_t is MeanFlow's by construction.
    `parse`, where given, turns the text after "NAME:" into an estimator; `template` marks one that cannot do without.
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

    @property
    def is_affine(self) -> bool:
        """Whether the gradient at v_c = v is the conditional mean of the gradient."""
        return self.affine or self.coefficients is not None


def squared(e: Tensor) -> Tensor:
    """|e|^2 of each sample: [n, *shape] -> [n]."""
    return e.flatten(1).square().sum(1)
