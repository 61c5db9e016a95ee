"""`mfdiag times`: the density of (r, t) under which the weighted gradient varies least, tried on fresh samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mfdiag.measures.run.table import MeasuredTable
from mfdiag.tables.columns import BINS, GRADIENT2, gradient_table
from mfdiag.tables.fields import Column, Quantity

if TYPE_CHECKING:
    import pandas as pd

    from mfdiag.measures.parts.rows import Rows
    from mfdiag.measures.parts.time_density import Search
    from mfdiag.measures.run.measurement import Measurement

__all__ = ["TABLE", "add_density_rows"]

SCHEMA = gradient_table(
    "times",
    "times",
    "The density of (r, t) of least gradient variance beside the trained one, cell by cell, and its gain. Fitted on "
    "the samples of seed, evaluated on those of seed + 1. Column times holds the trained sampler.",
    (
        Column(
            "pairs",
            "string",
            "Which pairs of the cell: all, those with r < t, or those with r = t.",
            choices=("all", "apart", "diagonal"),
        ),
        *BINS,
    ),
    Quantity(
        "trained_share",
        "p_c",
        "1",
        "Fraction of pairs in the cell under the trained sampler, from 2^21 quasi-random pairs in 16 replicates; its "
        "error is about 1e-5, and Student's t over replicates gives the interval.",
    ),
    Quantity(
        "drawn_share",
        "q_c = floor p_c + (1 - floor) p_c m_c^1/2 / sum_c p_c m_c^1/2",
        "1",
        "Fraction of pairs in the cell under the new density; m_c is the cell's second_moment, or the mean one if the "
        "cell has too few samples. The weight of its samples is p_c / q_c.",
    ),
    Quantity("second_moment", "E[|G|^2 | cell]", GRADIENT2, "Mean squared norm of the unweighted gradient."),
    Quantity(
        "predicted_gain",
        "(sum_c p_c m_c - |E G|^2) / (sum_c p_c^2 m_c / q_c - |E G|^2)",
        "1",
        "Factor by which the new density lowers the variance, from the samples it was fitted on.",
    ),
    Quantity(
        "unbounded_gain",
        "the same with floor = 0",
        "1",
        "The gain without a floor, where weights have no bound.",
    ),
    Quantity(
        "variance",
        "tr Cov G under p",
        GRADIENT2,
        "Under the trained sampler, on the samples of seed + 1.",
        kind="nonnegative",
    ),
    Quantity(
        "weighted_variance",
        "tr Cov (p/q) G under q",
        GRADIENT2,
        "Of the weighted gradient under the new density, on the samples of seed + 1.",
    ),
    Quantity(
        "measured_gain",
        "variance / weighted_variance",
        "1",
        "Factor by which the new density lowers the variance, from other samples.",
    ),
)


def measure(measurement: Measurement) -> Mapping[str, pd.DataFrame]:
    """A stratified pass that fits the density, then the trained one and the new one on fresh samples."""
    from mfdiag.measures.parts.time_density import GradientPlan, search

    request = measurement.request
    (estimator,) = measurement.estimators
    plan = GradientPlan(estimator, request.weighting)
    result = search(
        lambda times, seed: measurement.run_pass_with(plan, times=times, seed=seed),
        measurement.subject.times,
        request.settings.bins,
        request.floor,
        request.seed,
        measurement.draws.data,
    )
    rows = measurement.rows(estimator=estimator.name)
    add_density_rows(rows, result)
    return {"times": rows.frame()}


def add_density_rows(rows: Rows, result: Search) -> None:
    """Gains over all cells, then share and second moment cell by cell."""
    from mfdiag.flow.density import SHARE_DRAWS, density_cells, share_replicates
    from mfdiag.gradients.cells import Box
    from mfdiag.gradients.intervals import jackknife, skewed_jackknife
    from mfdiag.quality.intervals import estimate_from_replicates

    for quantity, estimate in result.overall.items():
        rows.add(quantity, estimate, pairs="all", tail=result.tail)
    blocks, shares = result.map.blocks, share_replicates(result.base, result.bins)
    tail = result.tail if result.tail == "heavy_tail" else None  # a cell's own samples are too few to tell
    for c, bounds in enumerate(density_cells(result.bins)):
        box, count = Box(*bounds), int(result.map.counts[c])
        pairs = "apart" if c < len(result.trained) - result.bins[1] else "diagonal"
        rows.add("trained_share", estimate_from_replicates(shares[:, c], SHARE_DRAWS), box, pairs=pairs)
        for quantity, estimate in (
            ("drawn_share", jackknife(result.drawn[:, c], blocks)),
            ("second_moment", skewed_jackknife(result.map.own[:, c], blocks, nonnegative=True)),
        ):
            rows.add(quantity, estimate._replace(n_samples=count), box, pairs=pairs, tail=tail)


def files(frame: pd.DataFrame, out: Path) -> tuple[list[Path], str]:
    """The densities as files that `--times density:FILE` reads."""
    from mfdiag.tables.densities import write_densities

    paths = write_densities(frame, out)
    return paths, f"train or measure with the new density: {', '.join(f'density:{path}' for path in paths)}."


TABLE = MeasuredTable(
    SCHEMA,
    measure=measure,
    files=files,
    options=("estimator", "floor"),
    default_estimators=("meanflow",),
    default_bins=(5, 5),
    one_estimator=True,
)
