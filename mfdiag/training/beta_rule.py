"""The tangent coefficient as a function of (r, t) and of the progress of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfdiag.training.spec import BetaSpec

__all__ = ["BetaRule", "stack_rules"]


class BetaRule(NamedTuple):
    """A `BetaSpec` as tensors, so that models with different rules train together.

    Attributes:
        gap: Interval of t - r in which beta applies [2].
        t: Interval of t in which beta applies [2].
        end: Factor at the last step, 0-d.
        cells: Factors by bin of r and of t [R, T].
    """

    gap: Tensor
    t: Tensor
    end: Tensor
    cells: Tensor

    def factor(self, r: Tensor, t: Tensor, progress: Tensor) -> Tensor:
        """What beta is multiplied by.

        Args:
            r: Start times [n].
            t: End times [n].
            progress: Completed share of all steps, 0-d.

        Returns:
            Factors [n].
        """
        inside = _within(t - r, self.gap) & _within(t, self.t)
        rows, columns = (
            (time * bins).long().clamp(0, bins - 1) for time, bins in zip((r, t), self.cells.shape, strict=True)
        )
        cell = self.cells.flatten()[rows * self.cells.shape[1] + columns]
        return inside * cell * (1 + progress.to(cell.dtype) * (self.end - 1))


def _within(values: Tensor, interval: Tensor) -> Tensor:
    return (values >= interval[0]) & (values <= interval[1])


def stack_rules(specs: Sequence[BetaSpec | None], device: str) -> BetaRule | None:
    """The rules of all models, stacked [models, ...].

    Args:
        specs: A specification for each model, with cells of one shape.
        device: Where the tensors should be.

    Returns:
        The rules; None if beta is constant for all models.
    """
    if all(spec is None for spec in specs):
        return None
    each = [spec or BetaSpec() for spec in specs]

    def stacked(values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.get_default_dtype(), device=device)

    return BetaRule(
        stacked([spec.gap for spec in each]),
        stacked([spec.t for spec in each]),
        stacked([spec.end for spec in each]),
        stacked([spec.cells or ((1.0,),) for spec in each]),
    )
