"""`mfdiag times`: the shares of (r, t) under which the weighted gradient varies least, tried on fresh samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from mfdiag.coefficients.times import optimal_shares, weighted_moment
from mfdiag.errors import InputError
from mfdiag.estimators import Estimator
from mfdiag.fields.builder import FieldNeeds
from mfdiag.fields.differentiable_network import Loss
from mfdiag.fields.fields import Fields
from mfdiag.flow.density import SHARE_DRAWS, DensityTimes, cell_shares, check_base, density_cells
from mfdiag.flow.time_sampler import TimeSampler
from mfdiag.flow.weighting import Weighting
from mfdiag.gradients.cells import Box
from mfdiag.gradients.moments import Estimate, Moments, jackknife, positive_jackknife
from mfdiag.gradients.sample_pass import PassResult
from mfdiag.measures.cells import moments_by_cell
from mfdiag.measures.rows import FEW_SAMPLES, Rows

__all__ = ["GradientPlan", "Map", "Search", "fit_map", "search", "times_table"]

Run = Callable[[TimeSampler, int], PassResult]
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
        assert self.estimator.residual is not None
        return 2 * self.weighting(self.estimator.residual(fields))[None]

    def outputs(self, fields: Fields) -> Tensor | None:
        return None

    def scalars(self, fields: Fields) -> dict[str, Tensor]:
        return {}


class Map(NamedTuple):
    """What a stratified pass tells, by jackknife replicate [R]: E[|G|^2 | cell] and |E G|^2.

    `moments` [R, C] has in cells with too few samples the mean over the others, whose shares stay nearly as they are;
    `own` [R, C] is NaN there where nothing was drawn. `counts` [C] are samples by cell, `blocks` [R - 1] by block.
    """

    moments: np.ndarray
    own: np.ndarray
    mean2: np.ndarray
    counts: np.ndarray
    blocks: np.ndarray


class Search(NamedTuple):
    """What `mfdiag times` finds: shares of the cells `density_cells(bins)`, and estimates over all of them by quantity.

    `trained` [C]; `drawn` [R, C] by jackknife replicate, of which the first is the density itself.
    """

    bins: tuple[int, int]
    trained: np.ndarray
    drawn: np.ndarray
    map: Map
    overall: dict[str, Estimate]


def search(run: Run, base: TimeSampler, bins: tuple[int, int] | None, floor: float, seed: int) -> Search:
    """The density of least variance for the objective under `base`: fitted on the samples of `seed`, tried on the next.

    Raises InputError for a `base` that draws strata or has weights, without bins, and where samples are too few.
    """
    check_base(base)
    if bins is None:
        raise InputError("A density of (r, t) has cells: pass --bins R,T, as in 5,5.")
    trained = cell_shares(base, bins)
    pilot = np.sqrt(trained)  # between the samples' own shares and equal ones, so that rare cells are seen too
    stratified = DensityTimes("stratified", base, bins, trained, pilot / pilot.sum())
    found = fit_map(run(stratified, seed), stratified)
    before = weighted_moment(trained, trained, found.moments) - found.mean2

    def gain(shares: np.ndarray) -> Estimate:
        return positive_jackknife(
            before / (weighted_moment(trained, shares, found.moments) - found.mean2), found.blocks
        )

    drawn, free = (optimal_shares(trained, found.moments, least) for least in (floor, 0.0))
    overall = {"predicted_gain": gain(drawn), "unbounded_gain": gain(free)}
    # the same x_0 and x_1 under both, so that the ratio is of pairs of blocks
    tried = [_whole(run(times, seed + 1)) for times in (base, DensityTimes("best", base, bins, trained, drawn[0]))]
    variance, weighted = (moments.S[:, 0, 0, 0] for moments in tried)
    for quantity, values in (
        ("variance", variance),
        ("weighted_variance", weighted),
        ("measured_gain", variance / weighted),
    ):
        overall[quantity] = positive_jackknife(values, tried[0].count)
    return Search(bins, trained, drawn, found, overall)


def times_table(found: Search, common: Mapping[str, Any]) -> pd.DataFrame:
    """Rows of the table `times` (tables/schema.py)."""
    rows = Rows("times", common)
    for quantity, estimate in found.overall.items():
        rows.add(quantity, estimate, pairs="all")
    blocks = found.map.blocks
    for c, bounds in enumerate(density_cells(found.bins)):
        box, count = Box(*bounds), int(found.map.counts[c])
        pairs = "apart" if c < len(found.trained) - found.bins[1] else "diagonal"
        missing = np.array(np.nan)
        rows.add("trained_share", Estimate(found.trained[c], missing, missing, missing, SHARE_DRAWS), box, pairs=pairs)
        for quantity, estimate in (
            ("drawn_share", jackknife(found.drawn[:, c], blocks)),
            ("second_moment", positive_jackknife(found.map.own[:, c], blocks)),
        ):
            rows.add(quantity, estimate._replace(n_samples=count), box, pairs=pairs)
    return rows.frame()


def fit_map(measured: PassResult, times: DensityTimes) -> Map:
    """The map from a pass of `GradientPlan` under `times`."""
    cell = times.cell_of(measured.r, measured.t)
    norms = measured.gradient.diagonal[:, 0, 0].numpy() / times.weight(measured.r, measured.t) ** 2  # |G|^2, not |wG|^2
    shape = (measured.cells.blocks, len(times.trained))
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (measured.cells.block, cell), norms)
    np.add.at(counts, (measured.cells.block, cell), 1)
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
    whole = _whole(measured)
    return Map(moments, own, whole.M[:, 0, 0, 0], counts.sum(0).astype(int), whole.count)


def _whole(measured: PassResult) -> Moments:
    return next(moments_by_cell(measured, measured.gradient))[2]
