"""What one pass measures for every point of the plane (beta, gamma): docs/theory.md#plane and #moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mfdiag.coefficients.plane import ColumnLayout
from mfdiag.fields.builder import FieldNeeds
from mfdiag.fields.differentiable_network import Loss
from mfdiag.fields.fields import Fields
from mfdiag.fields.probes import DIAGONAL_PROBES
from mfdiag.flow.weighting import Weighting
from mfdiag.measures.parts.jacobian import jacobian_scalars

__all__ = ["PlanePlan", "WeightedGridPlan", "plane_basis"]


def plane_basis(fields: Fields, target: bool = True) -> Tensor:
    """Cotangents [K, n, *shape] that span the plane; `ColumnLayout.of_plane` says how.

    With `target`: e_0, e_b, e_g and, where v is known, A b and -b, the conditional means of e_b and e_g. Without, at
    gamma = 0: e_0, e_b and, where v is known, the conditional means of both.
    """
    parts = list(fields.plane if target else fields.plane[:2])
    if fields.posterior is not None:
        a_bias = fields.gap * fields.posterior.jvp_bias
        parts += [a_bias, -fields.posterior.bias] if target else [fields.mean_field().plane[0], a_bias]
    return torch.stack(parts)


@dataclass(frozen=True)
class PlanePlan:
    """The plane without weights: one group of cotangents serves every (beta, gamma), fewer if gamma stays 0."""

    posterior_known: bool
    target: bool = True
    jacobian: bool = False
    groups: int = 1
    losses: ClassVar[tuple[Loss, ...]] = ()

    @property
    def size(self) -> int:
        return 2 + self.target + 2 * self.posterior_known

    @property
    def layout(self) -> ColumnLayout:
        return ColumnLayout.of_plane(self.posterior_known, self.target)

    @property
    def needs(self) -> FieldNeeds:
        # the diagonal form needs squares of diagonal entries
        return FieldNeeds(posterior=self.posterior_known, jacobian=self.jacobian, probes=DIAGONAL_PROBES)

    def cotangents(self, fields: Fields) -> Tensor:
        """[C, n, *shape] with C = groups * size less the losses."""
        return 2 * plane_basis(fields, self.target)

    def outputs(self, fields: Fields) -> Tensor | None:
        """Residuals [C, n, *shape] whose own moments are measured, or None."""
        return plane_basis(fields, self.target)

    def scalars(self, fields: Fields) -> dict[str, Tensor]:
        """Numbers [n] by name, kept for each sample."""
        return jacobian_scalars(fields) if self.jacobian else {}


@dataclass(frozen=True)
class WeightedGridPlan:
    """An adaptive weight makes the gradient non-polynomial in (beta, gamma): each pair gets its own group.

    Its cotangents: w e, its difference to (0, 0)'s, and with a posterior (w e - w' e') / sqrt(2) of two draws at the
    same x_t, whose mean squared gradient is the conditional variance.
    """

    points: Sequence[tuple[float, float]]
    weighting: Weighting
    posterior_known: bool
    losses: ClassVar[tuple[Loss, ...]] = ()

    @property
    def layout(self) -> ColumnLayout:
        """Of the unweighted residuals that `outputs` keeps."""
        return ColumnLayout.of_plane(self.posterior_known)

    @property
    def groups(self) -> int:
        return len(self.points)

    @property
    def size(self) -> int:
        return 3 if self.posterior_known else 2

    @property
    def needs(self) -> FieldNeeds:
        return FieldNeeds(posterior=self.posterior_known, second_draw=self.posterior_known)

    def cotangents(self, fields: Fields) -> Tensor:
        """[C, n, *shape] with C = groups * size less the losses."""
        draws = [fields, fields.second_draw()] if self.posterior_known else [fields]
        planes = [draw.plane for draw in draws]
        corner = self.weighting(planes[0][0])
        cotangents = []
        for beta, gamma in self.points:
            weighted = [self.weighting(e_0 + beta * e_b + gamma * e_g) for e_0, e_b, e_g in planes]
            cotangents += [weighted[0], weighted[0] - corner]
            if self.posterior_known:
                cotangents.append((weighted[0] - weighted[1]) / 2**0.5)
        return 2 * torch.stack(cotangents)

    def outputs(self, fields: Fields) -> Tensor | None:
        """Residuals [C, n, *shape] whose own moments are measured, or None."""
        return plane_basis(fields)

    def scalars(self, fields: Fields) -> dict[str, Tensor]:
        """Numbers [n] by name, kept for each sample."""
        return {}
