"""The cotangents each command regresses on: theory, sections 2 and 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mfdiag.coefficients.plane import ColumnLayout
from mfdiag.errors import InputError
from mfdiag.estimators import Estimator
from mfdiag.fields.builder import FieldNeeds
from mfdiag.fields.differentiable_network import Loss
from mfdiag.fields.fields import Fields
from mfdiag.flow.weighting import Weighting
from mfdiag.measures.guided import guidance_parts
from mfdiag.measures.semi_gradient import gap_losses
from mfdiag.measures.velocity_field import EXACT_DIM, velocity_scalars

__all__ = [
    "EXTRAS",
    "EstimatorPlan",
    "PlanePlan",
    "WeightedGridPlan",
    "jacobian_scalars",
    "plane_basis",
]

EXTRAS = ("divergence", "semi_gradient_gap")  # measured only where asked for, as they cost further passes


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

    known: bool
    target: bool = True
    jacobian: bool = False
    groups: int = 1
    losses: ClassVar[tuple[Loss, ...]] = ()

    @property
    def size(self) -> int:
        return 2 + self.target + 2 * self.known

    @property
    def layout(self) -> ColumnLayout:
        return ColumnLayout.of_plane(self.known, self.target)

    @property
    def needs(self) -> FieldNeeds:
        return FieldNeeds(posterior=self.known, jacobian=self.jacobian)

    def cotangents(self, fields: Fields) -> Tensor:
        return 2 * plane_basis(fields, self.target)

    def outputs(self, fields: Fields) -> Tensor | None:
        return plane_basis(fields, self.target)

    def scalars(self, fields: Fields) -> dict[str, Tensor]:
        return jacobian_scalars(fields) if self.jacobian else {}


@dataclass(frozen=True)
class WeightedGridPlan:
    """An adaptive weight makes the gradient non-polynomial in (beta, gamma): each pair is a group of its own.

    Its cotangents: w e, its difference to (0, 0)'s, and with a posterior (w e - w' e') / sqrt(2) of two draws at the
    same x_t, whose mean squared gradient is the conditional variance.
    """

    points: Sequence[tuple[float, float]]
    weighting: Weighting
    known: bool
    losses: ClassVar[tuple[Loss, ...]] = ()

    @property
    def layout(self) -> ColumnLayout:
        """Of the unweighted residuals that `outputs` keeps."""
        return ColumnLayout.of_plane(self.known)

    @property
    def groups(self) -> int:
        return len(self.points)

    @property
    def size(self) -> int:
        return 3 if self.known else 2

    @property
    def needs(self) -> FieldNeeds:
        return FieldNeeds(posterior=self.known, second_draw=self.known)

    def cotangents(self, fields: Fields) -> Tensor:
        draws = [fields, fields.second_draw()] if self.known else [fields]
        planes = [draw.plane for draw in draws]
        corner = self.weighting(planes[0][0])
        found = []
        for beta, gamma in self.points:
            weighted = [self.weighting(e_0 + beta * e_b + gamma * e_g) for e_0, e_b, e_g in planes]
            found += [weighted[0], weighted[0] - corner]
            if self.known:
                found.append((weighted[0] - weighted[1]) / 2**0.5)
        return 2 * torch.stack(found)

    def outputs(self, fields: Fields) -> Tensor | None:
        return plane_basis(fields)

    def scalars(self, fields: Fields) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True)
class EstimatorPlan:
    """One group: for each estimator w e and what its conditional variance needs, then trajectory consistency.

    Without weights, a point of the plane is affine in v_c, so its residual at v_c = v is its conditional mean m:
    cotangents (e, m). Otherwise two draws at the same x_t: (w e, (w e - w' e') / sqrt(2)). Trajectory consistency is
    the part w (t-r) (du/dx v_c + du/dt) of MeanFlow's residual, or its conditional mean; it needs MeanFlow among the
    estimators, as does the gap that the losses stand for. `extras` are among EXTRAS. Where `guided`, each estimator's
    w e without guidance follows, and the parts of v_g are the outputs.
    """

    estimators: Sequence[Estimator]
    weighting: Weighting
    known: bool
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
        return gap_losses(self.weighting, self.known) if "semi_gradient_gap" in self.extras else ()

    @property
    def affine(self) -> bool:
        return not self.weighting.p and all(e.coefficients is not None for e in self.estimators)

    @property
    def each(self) -> int:
        """Columns of an estimator; those of estimator k start at k * each."""
        return 2 if self.known else 1

    @property
    def meanflow(self) -> int | None:
        """Which estimator is MeanFlow."""
        names = [e.name for e in self.estimators]
        return names.index("meanflow") if "meanflow" in names else None

    @property
    def consistency(self) -> int:
        """The column of trajectory consistency, where MeanFlow is there."""
        return len(self.estimators) * self.each

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
        return FieldNeeds(posterior=self.known, second_draw=self.known and not self.affine, jacobian=True)

    def cotangents(self, fields: Fields) -> Tensor:
        other = None
        if self.known:
            other = fields.mean_field() if self.affine else fields.second_draw()
        found = []
        for estimator in self.estimators:
            assert estimator.residual is not None
            weighted = self.weighting(estimator.residual(fields))
            found.append(weighted)
            if other is not None:
                second = self.weighting(estimator.residual(other))
                found.append(second if self.affine else (weighted - second) / 2**0.5)
        if self.meanflow is not None:
            along = fields.jvp_v_c if other is None or not self.affine else other.jvp_v_c
            found.append(self.weighting(fields.plane[0], fields.gap * along))
        if self.guided:
            plain = fields.without_guidance()
            found += [self.weighting(e.residual(plain)) for e in self.estimators if e.residual is not None]
        return 2 * torch.stack(found)

    def outputs(self, fields: Fields) -> Tensor | None:
        return guidance_parts(fields) if self.guided else None

    def scalars(self, fields: Fields) -> dict[str, Tensor]:
        residuals = {e.name: e.residual(fields) for e in self.estimators if e.residual is not None}
        squares = {name: e.flatten(1).square().sum(1) for name, e in residuals.items()}
        dim = fields.u[0].numel()
        losses = {
            f"loss/{name}": fields.apply_weight(self.weighting.loss(square, dim)) for name, square in squares.items()
        }
        kept = {f"residual2/{name}": square for name, square in squares.items()}
        wanted = fields.u[0].numel() <= EXACT_DIM or "divergence" in self.extras
        return {**losses, **kept, **jacobian_scalars(fields), **(velocity_scalars(fields) if wanted else {})}


def jacobian_scalars(fields: Fields) -> dict[str, Tensor]:
    """Per sample: tr(J)/d, |J|_F^2, |J|_2; with a known posterior tr Sigma, |b|^2 and the diagonal form's parts.

    With random signs z instead of a basis, tr A = E z.Az and |J|_F^2 = E|Az - z|^2 (Hutchinson), products of diagonal
    entries come from pairs of different probes, and the spectral norm is left out.
    """
    jacobian = fields.jacobian
    assert jacobian is not None
    z, az = jacobian.probes, jacobian.products  # [m, n, d]
    m = len(az)
    share = 1 if jacobian.is_full else m
    hits = z * az  # its sum over a basis, or mean over signs, is the diagonal of A
    diagonal = hits.sum(0) / share
    jz = az - z
    found = {
        "kappa": diagonal.mean(1) - 1,
        "jacobi_fro2": jz.square().sum((0, 2)) / share,
    }
    if jacobian.is_full:
        found["jacobi_spectral"] = torch.linalg.matrix_norm(jz.transpose(0, 1), ord=2)
    if fields.posterior is not None:
        sigma, bias2 = fields.posterior.variance.flatten(1), fields.posterior.bias.flatten(1).square()
        squared = diagonal**2
        if not jacobian.is_full:  # unbiased: pairs of different probes only
            squared = (hits.sum(0) ** 2 - hits.square().sum(0)) / (m * (m - 1))
        found["sigma2d"] = sigma.sum(1)
        found["bias2"] = bias2.sum(1)
        # theory, diagonal form: minimise sum_i Sigma_ii (J_ii - beta A_ii)^2 + beta^2 A_ii^2 b_i^2 with J = A - I
        found["diagonal/numerator"] = ((squared - diagonal) * sigma).sum(1)
        found["diagonal/denominator"] = (squared * (sigma + bias2)).sum(1)
    return found
