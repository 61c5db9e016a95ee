"""All estimators of a comparison as one group of gradients, and the maps that read each of them from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfdiag.estimators import Estimator
from mfdiag.fields.builder import FieldNeeds
from mfdiag.fields.differentiable_network import DifferentiableNetwork, Loss
from mfdiag.fields.fields import Fields
from mfdiag.flow.weighting import Weighting

__all__ = ["ComparePlan", "Maps"]

Draw = Literal["own", "mean", "second"]
_DRAWN: dict[Draw, Callable[[Fields], Fields]] = {
    "own": lambda fields: fields,
    "mean": Fields.mean_field,
    "second": Fields.second_draw,
}


class Maps(NamedTuple):
    """Maps [K, C] from the C gradients of the group to those of K estimators.

    `value` gives G, `mean` something of the same expectation and less noise, `within` what has the conditional
    fluctuation's second moment (None where the posterior is not known).
    """

    value: np.ndarray
    mean: np.ndarray
    within: np.ndarray | None


@dataclass(frozen=True)
class ComparePlan:
    """One group: the gradient of each estimator, MeanFlow first, and what their conditional moments need.

    Where v is known and there are no weights, a point of the plane fluctuates by [(1-beta) A - (1-gamma) I] v', so A v'
    and v' serve all of them; another estimator affine in v_c brings its conditional mean, its gradient at v_c = v; the
    rest bring their gradient for a second draw of v_c given x_t.
    """

    estimators: Sequence[Estimator]
    weighting: Weighting
    posterior_known: bool
    groups: ClassVar[int] = 1

    @cached_property
    def _columns(self) -> list[tuple[Estimator, Draw]]:
        """(estimator, draw) of each column of the group but the two shared ones: cotangents first, losses last."""
        columns: list[tuple[Estimator, Draw]] = []
        for estimator in sorted(self.estimators, key=lambda e: e.loss is not None):
            columns.append((estimator, "own"))
            if self.posterior_known and not self._uses_shared(estimator):
                columns.append((estimator, "mean" if estimator.is_affine and not self.weighting.p else "second"))
        return columns

    def _uses_shared(self, estimator: Estimator) -> bool:
        """Whether the shared columns hold the conditional fluctuation of this estimator: it is a point of the plane."""
        return estimator.coefficients is not None and not self.weighting.p

    @property
    def _has_shared(self) -> bool:
        """Whether the group holds the shared columns A v' and v'."""
        return self.posterior_known and not self.weighting.p

    @property
    def size(self) -> int:
        return len(self._columns) + 2 * self._has_shared

    @property
    def needs(self) -> FieldNeeds:
        return FieldNeeds(
            posterior=self.posterior_known, second_draw=any(draw == "second" for _, draw in self._columns)
        )

    @property
    def losses(self) -> list[Loss]:
        return [partial(self._loss, e, draw) for e, draw in self._columns if e.loss is not None]

    def cotangents(self, fields: Fields) -> Tensor:
        """[C, n, *shape] with C = groups * size less the losses."""
        drawn = {draw: _DRAWN[draw](fields) for draw in dict.fromkeys(draw for _, draw in self._columns)}
        cotangents = [self.weighting(e.residual(drawn[draw])) for e, draw in self._columns if e.residual is not None]
        if self._has_shared:
            mean = fields.mean_field()
            v = fields.v_c - mean.v_c  # v'
            cotangents += [fields.plane[0] - mean.plane[0] + v, v]  # e_0 - E[e_0 given x_t] = A v' - v'
        return 2 * torch.stack(cotangents)

    def outputs(self, fields: Fields) -> Tensor | None:
        """Residuals [C, n, *shape] whose own moments are measured, or None."""
        return None

    def scalars(self, fields: Fields) -> dict[str, Tensor]:
        """Numbers [n] by name, kept for each sample."""
        return {}

    @cached_property
    def maps(self) -> Maps:
        """How the group's columns, in the order cotangents, A v' and v', losses, make each estimator."""
        shared = sum(e.residual is not None for e, _ in self._columns)  # the first shared column
        skipped = 2 * self._has_shared
        column = {(e.name, draw): k + (skipped if k >= shared else 0) for k, (e, draw) in enumerate(self._columns)}
        value = np.zeros((len(self.estimators), self.size))
        within, mean = value.copy(), value.copy()
        for k, e in enumerate(self.estimators):
            value[k, column[e.name, "own"]] = 1
            if not self.posterior_known:
                mean[k] = value[k]
            elif self._uses_shared(e):
                assert e.coefficients is not None
                beta, gamma = e.coefficients
                within[k, [shared, shared + 1]] = 1 - beta, -(1 - gamma)
                mean[k] = value[k] - within[k]
            elif (e.name, "mean") in column:
                mean[k, column[e.name, "mean"]] = 1
                within[k] = value[k] - mean[k]
            else:
                second = np.eye(self.size)[column[e.name, "second"]]
                within[k] = (value[k] - second) / 2**0.5
                # where there are weights, no mean is MeanFlow's
                mean[k] = mean[0] if e.unbiased and not self.weighting.p else (value[k] + second) / 2
        return Maps(value, mean, within if self.posterior_known else None)

    def _loss(self, estimator: Estimator, draw: Draw, fields: Fields, network: DifferentiableNetwork) -> Tensor:
        assert estimator.loss is not None
        values = estimator.loss(_DRAWN[draw](fields), network)
        # a loss that is no single square has no |e|^2: the adaptive weight takes the loss itself instead
        return self.weighting.loss(values, fields.u[0].numel()) if self.weighting.p else values
