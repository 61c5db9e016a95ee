"""The density of (r, t) under which the weighted gradient varies least: docs/theory.md#times-density."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from mfdiag.coefficients.times import optimal_shares, weighted_moment
from mfdiag.errors import InputError
from mfdiag.estimators import Estimator
from mfdiag.fields.builder import FieldNeeds
from mfdiag.fields.differentiable_network import Loss
from mfdiag.fields.fields import Fields
from mfdiag.flow.data.datasets import Data
from mfdiag.flow.density import DensityTimes, cell_shares, check_base
from mfdiag.flow.time_sampler import TimeSampler
from mfdiag.flow.weighting import Weighting
from mfdiag.gradients.intervals import Estimate, skewed_jackknife
from mfdiag.gradients.moments import Moments
from mfdiag.gradients.sample_pass import PassResult
from mfdiag.measures.parts.cells import moments_by_cell
from mfdiag.measures.parts.concentration import heaviest_tail
from mfdiag.measures.parts.rows import FEW_SAMPLES

__all__ = ["GradientPlan", "MomentMap", "RunPass", "Search", "search"]

RunPass = Callable[[TimeSampler, int], PassResult]
"""(sampler, seed) -> a pass over the request's samples under these, with `GradientPlan` and without bins."""


@dataclass(frozen=True)
class GradientPlan:
    """One cotangent: the gradient of one estimator."""

    estimator: Estimator
    weighting: Weighting
    groups: ClassVar[int] = 1
    size: ClassVar[int] = 1
    needs: ClassVar[FieldNeeds] = FieldNeeds(posterior=False)
    losses: ClassVar[tuple[Loss, ...]] = ()

    def cotangents(self, fields: Fields) -> Tensor:
        """[C, n, *shape] with C = groups * size less the losses."""
        assert self.estimator.residual is not None
        return 2 * self.weighting(self.estimator.residual(fields))[None]

    def outputs(self, fields: Fields) -> Tensor | None:
        """Residuals [C, n, *shape] whose own moments are measured, or None."""
        return None

    def scalars(self, fields: Fields) -> dict[str, Tensor]:
        """Numbers [n] by name, kept for each sample."""
        return {}


class MomentMap(NamedTuple):
    """What a stratified pass measures, by jackknife replicate [R]: E[|G|^2 | cell] and |E G|^2.

    `moments` [R, C] has in cells with too few samples the mean over the others, whose shares stay nearly as they are;
    `own` [R, C] is NaN there where nothing was drawn. `counts` [C] are samples by cell, `blocks` [R - 1] by block.
    """

    moments: np.ndarray
    own: np.ndarray
    mean2: np.ndarray
    counts: np.ndarray
    blocks: np.ndarray


class Search(NamedTuple):
    """What the search computes: shares of the cells `density_cells(bins)`, and estimates over all of them by quantity.

    `trained` [C] under `base`; `drawn` [R, C] by jackknife replicate, of which the first is the density itself; `tail`
    says why heavy tails leave no interval to trust, or None.
    """

    base: TimeSampler
    bins: tuple[int, int]
    trained: np.ndarray
    drawn: np.ndarray
    map: MomentMap
    overall: dict[str, Estimate]
    tail: str | None


def search(
    run_pass: RunPass, base: TimeSampler, bins: tuple[int, int] | None, floor: float, seed: int, data: Data
) -> Search:
    """The density of least variance for the objective under `base`, fitted on one seed and tested on the next.

    Args:
        run_pass: Measures one gradient under a sampler and a seed.
        base: The trained sampler of (r, t).
        bins: Cells of r and t.
        floor: Least share of the trained density that stays in every cell, in (0, 1].
        seed: Seed of the samples it is fitted on; those of the next seed test it.
        data: What the samples are drawn from.

    Returns:
        Shares of the cells and the predicted and measured gain.

    Raises:
        InputError: `base` draws strata or has weights, there are no bins, or too few samples for any cell.
    """
    check_base(base)
    if bins is None:
        raise InputError("A density of (r, t) needs cells: pass --bins R,T, as in 5,5.")
    trained = cell_shares(base, bins)
    pilot = np.sqrt(trained)  # between the samples' own shares and equal ones, so that rare cells are seen too
    stratified = DensityTimes("stratified", base, bins, trained, pilot / pilot.sum())
    moment_map = _fit_map(run_pass(stratified, seed), stratified)
    before = weighted_moment(trained, trained, moment_map.moments) - moment_map.mean2

    def gain(shares: np.ndarray) -> Estimate:
        after = weighted_moment(trained, shares, moment_map.moments) - moment_map.mean2
        return skewed_jackknife(before / after, moment_map.blocks, nonnegative=True)

    drawn, unbounded = (optimal_shares(trained, moment_map.moments, least) for least in (floor, 0.0))
    overall = {"predicted_gain": gain(drawn), "unbounded_gain": gain(unbounded)}
    # the same x_0 and x_1 under both samplers, so that blocks of the ratio are paired
    best = DensityTimes("best", base, bins, trained, drawn[0])
    passes = [run_pass(times, seed + 1) for times in (base, best)]
    tests = [_all_samples(result) for result in passes]
    tail = heaviest_tail(np.stack([result.gradient.diagonal[:, 0, 0].numpy() for result in passes], 1), data)
    variance, weighted = (moments.S[:, 0, 0, 0] for moments in tests)
    for quantity, values in (
        ("variance", variance),
        ("weighted_variance", weighted),
        ("measured_gain", variance / weighted),
    ):
        overall[quantity] = skewed_jackknife(values, tests[0].count, nonnegative=True)
    return Search(base, bins, trained, drawn, moment_map, overall, tail)


def _fit_map(result: PassResult, times: DensityTimes) -> MomentMap:
    """The map from a pass of `GradientPlan` under `times`."""
    cell = times.cell_of(result.r, result.t)
    norms = result.gradient.diagonal[:, 0, 0].numpy() / times.weight(result.r, result.t) ** 2  # |G|^2, not |wG|^2
    shape = (result.cells.blocks, len(times.trained))
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (result.cells.block, cell), norms)
    np.add.at(counts, (result.cells.block, cell), 1)
    left_sums, left_counts = (np.concatenate([a.sum(0)[None], a.sum(0) - a]) for a in (sums, counts))
    own = left_sums / left_counts
    enough = counts.sum(0) >= FEW_SAMPLES
    if not enough.any():
        raise InputError(
            f"{len(norms)} samples leave each of {len(enough)} cells of (r, t) with fewer than {FEW_SAMPLES}: raise "
            "--samples, or ask for fewer --bins."
        )
    share = times.trained[enough]
    moments = np.where(enough, own, (own[:, enough] @ share / share.sum())[:, None])
    whole = _all_samples(result)
    return MomentMap(moments, own, whole.M[:, 0, 0, 0], counts.sum(0).astype(int), whole.count)


def _all_samples(result: PassResult) -> Moments:
    return next(moments_by_cell(result, result.gradient))[2]
