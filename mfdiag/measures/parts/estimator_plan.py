"""What one pass measures for a list of estimators: gradients, conditional moments, losses and Jacobian numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mfdiag.errors import InputError
from mfdiag.estimators import Estimator
from mfdiag.fields.builder import FieldNeeds
from mfdiag.fields.differentiable_network import Loss
from mfdiag.fields.fields import Fields
from mfdiag.flow.weighting import Weighting
from mfdiag.measures.parts.guidance import guidance_parts
from mfdiag.measures.parts.jacobian import jacobian_scalars
from mfdiag.measures.parts.semi_gradient import gap_losses
from mfdiag.measures.parts.velocity_field import EXACT_DIM, velocity_scalars

__all__ = ["EstimatorPlan"]


@dataclass(frozen=True)
class EstimatorPlan:
    """One group: for each estimator w e and what its conditional variance needs, then trajectory consistency.

    Without weights, a point of the plane is affine in v_c, so its residual at v_c = v is its conditional mean m:
    cotangents (e, m). Otherwise two draws at the same x_t: (w e, (w e - w' e') / sqrt(2)). Trajectory consistency is
    the part w (t-r) (du/dx v_c + du/dt) of MeanFlow's residual, or its conditional mean; it needs MeanFlow among the
    estimators, as does the gap that the losses stand for. `extras` are those of table `variance`. Where `guided`, w e
    of each estimator without guidance follows, and the parts of v_g are the outputs.
    """

    estimators: Sequence[Estimator]
    weighting: Weighting
    posterior_known: bool
    extras: Sequence[str] = ()
    guided: bool = False
    groups: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.losses and self.meanflow is None:
            names = ", ".join(e.name for e in self.estimators)
            raise InputError(
                f"--extra semi_gradient_gap compares MeanFlow's gradient with and without stop-gradient, got {names}: "
                "add --estimator meanflow."
            )

    @property
    def losses(self) -> tuple[Loss, ...]:
        return gap_losses(self.weighting, self.posterior_known) if "semi_gradient_gap" in self.extras else ()

    @property
    def affine(self) -> bool:
        """Whether every estimator is an unweighted point of the plane, so that its residual is affine in v_c."""
        return not self.weighting.p and all(e.coefficients is not None for e in self.estimators)

    def column(self, k: int) -> int:
        """The column of estimator k's gradient. If the posterior is known, its conditional part is the next column."""
        return k * (2 if self.posterior_known else 1)

    @property
    def meanflow(self) -> int | None:
        """The number of the estimator that is MeanFlow, or None."""
        names = [e.name for e in self.estimators]
        return names.index("meanflow") if "meanflow" in names else None

    @property
    def consistency(self) -> int:
        """The column of trajectory consistency, if MeanFlow is among the estimators."""
        return self.column(len(self.estimators))

    @property
    def unguided(self) -> list[int]:
        """The columns of the estimators without guidance."""
        start = self.consistency + (self.meanflow is not None)
        return list(range(start, start + len(self.estimators) * self.guided))

    @property
    def gap(self) -> list[int]:
        """The columns of the losses."""
        return list(range(self.size - len(self.losses), self.size))

    @property
    def size(self) -> int:
        return self.consistency + (self.meanflow is not None) + len(self.unguided) + len(self.losses)

    @property
    def needs(self) -> FieldNeeds:
        return FieldNeeds(
            posterior=self.posterior_known, second_draw=self.posterior_known and not self.affine, jacobian=True
        )

    def cotangents(self, fields: Fields) -> Tensor:
        """[C, n, *shape] with C = groups * size less the losses."""
        same_point = None  # the same x_t with the conditional mean of v_c, or with a second draw of it
        if self.posterior_known:
            same_point = fields.mean_field() if self.affine else fields.second_draw()
        cotangents = []
        for estimator in self.estimators:
            assert estimator.residual is not None
            weighted = self.weighting(estimator.residual(fields))
            cotangents.append(weighted)
            if same_point is not None:
                second = self.weighting(estimator.residual(same_point))
                cotangents.append(second if self.affine else (weighted - second) / 2**0.5)
        if self.meanflow is not None:
            derivative = fields.jvp_v_c if same_point is None or not self.affine else same_point.jvp_v_c
            cotangents.append(self.weighting(fields.plane[0], fields.gap * derivative))
        if self.guided:
            plain = fields.without_guidance()
            cotangents += [self.weighting(e.residual(plain)) for e in self.estimators if e.residual is not None]
        return 2 * torch.stack(cotangents)

    def outputs(self, fields: Fields) -> Tensor | None:
        """Residuals [C, n, *shape] whose own moments are measured, or None."""
        return guidance_parts(fields) if self.guided else None

    def scalars(self, fields: Fields) -> dict[str, Tensor]:
        """Numbers [n] by name, kept for each sample."""
        residuals = {e.name: e.residual(fields) for e in self.estimators if e.residual is not None}
        squares = {name: e.flatten(1).square().sum(1) for name, e in residuals.items()}
        dim = fields.u[0].numel()
        losses = {
            f"loss/{name}": fields.apply_weight(self.weighting.loss(square, dim)) for name, square in squares.items()
        }
        residuals2 = {f"residual2/{name}": square for name, square in squares.items()}
        with_velocity = dim <= EXACT_DIM or "divergence" in self.extras
        return {
            **losses,
            **residuals2,
            **jacobian_scalars(fields),
            **(velocity_scalars(fields) if with_velocity else {}),
        }
