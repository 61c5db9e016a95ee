"""`mfdiag sweep`: variance, conditional variance, bias and MSE over (beta, gamma), and where the MSE is least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from mfdiag.coefficients.plane import Quadratic, gradient_quadratic, is_degenerate, output_quadratic
from mfdiag.flow.weighting import Weighting
from mfdiag.gradients.cells import Box
from mfdiag.gradients.moments import Moments, jackknife, positive_jackknife
from mfdiag.gradients.sample_pass import PassResult
from mfdiag.measures.cells import moments_by_cell
from mfdiag.measures.plans import PlanePlan, WeightedGridPlan
from mfdiag.measures.rows import Rows

__all__ = ["sweep_plan", "sweep_table"]

_PATH = (*(m * 10**k for k in range(6) for m in (1, 2, 5)), 10**6)  # n along the path, besides the batches asked for


def sweep_plan(
    betas: Sequence[float], gammas: Sequence[float], weighting: Weighting, known: bool
) -> PlanePlan | WeightedGridPlan:
    """The pass a sweep needs; without weights its cost does not depend on how many coefficients are asked for."""
    if weighting.p:
        return WeightedGridPlan(list(product(betas, gammas)), weighting, known)
    return PlanePlan(known, target=any(gammas))


def sweep_table(
    measured: PassResult,
    plan: PlanePlan | WeightedGridPlan,
    betas: Sequence[float],
    gammas: Sequence[float],
    batch_sizes: Sequence[int],
    common: Mapping[str, Any],
    by_layer: bool,
) -> pd.DataFrame:
    """Rows of the table `sweep` (tables/schema.py)."""
    rows = Rows("sweep", common)
    points = np.array(list(product(betas, gammas)), dtype=float).T
    for box, layer, moments in moments_by_cell(measured, measured.gradient, by_layer):
        if isinstance(plan, PlanePlan):
            form = gradient_quadratic(moments, plan.layout)
            values = _curves(form, points)
        else:
            values = _weighted(moments, plan.known)
        _add(rows, box, "gradient", layer, values, moments.count, points, batch_sizes, noise="variance")
        if isinstance(plan, PlanePlan) and plan.target:
            _optima(rows, box, layer, form, moments.count, batch_sizes)
    if measured.output is not None:
        for box, _, moments in moments_by_cell(measured, measured.output):
            form = output_quadratic(moments, plan.layout)
            values = _curves(form, points)
            _add(rows, box, "output", "all", values, moments.count, points, batch_sizes, noise="conditional_variance")
    return rows.frame()


def _curves(form: Quadratic, points: np.ndarray) -> dict[str, np.ndarray]:
    """Quantity -> replicates [R, P]."""
    named = {"variance": form.S, "conditional_variance": form.W, "bias2": form.B}
    return {name: form.at(matrix, *points) for name, matrix in named.items() if matrix is not None}


def _weighted(moments: Moments, known: bool) -> dict[str, np.ndarray]:
    """The same from one group per point: (w e, w e - w_0 e_0, conditional fluctuation)."""
    found = {"variance": moments.S[..., 0, 0], "bias2": moments.M[..., 1, 1]}
    if known:
        found["conditional_variance"] = moments.Q[..., 2, 2]
    return found


def _add(
    rows: Rows,
    box: Box,
    space: str,
    layer: str,
    values: dict[str, np.ndarray],
    count: np.ndarray,
    points: np.ndarray,
    batch_sizes: Sequence[int],
    noise: str,
) -> None:
    """theory: MSE_n(c) = Var(c)/n + bias2(c); in output space n repeats at the same x_t, so conditional noise only."""
    keys = {"space": space, "layer": layer, "beta": points[0], "gamma": points[1]}
    for quantity, replicates in values.items():
        estimate = (jackknife if quantity == "bias2" else positive_jackknife)(replicates, count)
        rows.add(quantity, estimate, box, **keys, batch_size=1)
    if noise in values and "bias2" in values:
        for n in batch_sizes:
            rows.add("mse", jackknife(values[noise] / n + values["bias2"], count), box, **keys, batch_size=n)


def _optima(rows: Rows, box: Box, layer: str, form: Quadratic, count: np.ndarray, batch_sizes: Sequence[int]) -> None:
    """theory: c*_n = -(S_cc + n M_cc)^(-1) S_c0 over beta and gamma together, along the path of n."""
    sizes = sorted({*batch_sizes, *_PATH})
    path = np.stack([form.optimum(form.S, n, (1, 2)) for n in sizes], axis=-1)  # [R, 2, sizes]
    constant = is_degenerate(form.S, 1) or is_degenerate(form.S, 2) or not np.isfinite(path[0]).all()
    unresolved = ~(1 + np.array(sizes) * jackknife(form.least_bias_ratio(form.S), count).low > 0)
    for k, quantity in enumerate(("optimum_beta", "optimum_gamma")):
        rows.add(
            quantity,
            jackknife(path[:, k], count),
            box,
            degenerate=constant,
            negative=unresolved,
            space="gradient",
            layer=layer,
            beta=None,
            gamma=None,
            batch_size=sizes,
        )
