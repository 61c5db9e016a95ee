"""`mfdiag compare`: every estimator on the same samples, each held against MeanFlow, and their best mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mfdiag.coefficients.mixture import mixture_weights
from mfdiag.gradients.moments import Estimate, Moments, jackknife, positive_jackknife
from mfdiag.gradients.sample_pass import PassResult
from mfdiag.measures.cells import moments_by_cell
from mfdiag.measures.compare_plan import ComparePlan, Maps
from mfdiag.measures.rows import Rows

__all__ = ["compare_table"]

_SPREADS = ("variance", "conditional_variance", "variance_ratio", "conditional_variance_ratio")


def compare_table(
    measured: PassResult,
    plan: ComparePlan,
    batch_sizes: Sequence[int],
    common: Mapping[str, Any],
    by_layer: bool,
    listed: Sequence[str],
) -> pd.DataFrame:
    """Rows of the table `compare` (tables/schema.py) for the `listed` names; the plan's first estimator is MeanFlow."""
    rows = Rows("compare", common)
    names = [e.name for e in plan.estimators]
    kept = [k for k, name in enumerate(names) if name in listed]
    who: dict[str, Any] = {"estimator": np.array(names, object)[kept]}
    for box, layer, moments in moments_by_cell(measured, measured.gradient, by_layer):
        if layer != "all" and any(edge is not None for edge in box):
            continue  # layers over all times, times over all layers
        found = _statistics(moments, plan.maps)
        for quantity, replicates in found.items():
            spread = positive_jackknife if quantity in _SPREADS else jackknife
            estimate = spread(replicates[:, kept], moments.count)
            rows.add(quantity, estimate, box, layer=layer, batch_size=None, **who)
        for n in batch_sizes:
            # theory: MSE_n = Var/n + bias2, against MeanFlow's, which has no bias
            error = found["variance"] / n + found["bias2"]
            rows.add("mse", jackknife(error[:, kept], moments.count), box, layer=layer, batch_size=n, **who)
            ratio = error / error[:, :1]
            rows.add("mse_ratio", jackknife(ratio[:, kept], moments.count), box, layer=layer, batch_size=n, **who)
    cost = np.array([e.needs.cost for e in plan.estimators], float)[kept]
    missing = np.full(len(kept), np.nan)
    exact = Estimate(cost, missing, missing, missing, len(measured.t))
    rows.add("cost", exact, layer="all", batch_size=None, **who)
    if len(names) > 1 and not measured.stratified:
        _mixture(rows, measured, plan, batch_sizes, names)
    return rows.frame()


def _form(matrix: np.ndarray, left: np.ndarray, right: np.ndarray | None = None) -> np.ndarray:
    """left M right for each pair of rows of the maps [K, C]: [R, K] from [R, C, C]."""
    return np.einsum("kc,rcd,kd->rk", left, matrix, left if right is None else right)


def _statistics(moments: Moments, maps: Maps) -> dict[str, np.ndarray]:
    """Quantity -> replicates [R, K]."""
    S, M, Q = (matrix[:, 0] for matrix in (moments.S, moments.M, moments.Q))
    variance = _form(S, maps.value)
    found = {"variance": variance, "variance_ratio": variance / variance[:, :1]}
    if maps.within is not None:
        within = _form(Q, maps.within)
        found |= {"conditional_variance": within, "conditional_variance_ratio": within / within[:, :1]}
    bias = _bias(S, maps)
    found["bias2"] = _form(M, bias)
    mean = maps.mean[0] + bias
    norm = _form(M, mean)
    found["cosine"] = _form(M, mean, np.broadcast_to(maps.mean[0], mean.shape)) / np.sqrt(norm * norm[:, :1])
    return found


def _bias(S: np.ndarray, maps: Maps) -> np.ndarray:
    """Map [K, C] to gradients whose means are the biases E G_k - E G_MeanFlow.

    Two are at hand: the difference of the conditional means, and that of the gradients themselves, whose noise cancels
    where the methods are close. The one of less variance is taken.
    """
    candidates = [maps.mean - maps.mean[0], maps.value - maps.value[0]]
    spread = [_form(S[:1], candidate)[0] for candidate in candidates]
    return np.where((spread[0] <= spread[1])[:, None], *candidates)


def _mixture(
    rows: Rows, measured: PassResult, plan: ComparePlan, batch_sizes: Sequence[int], names: Sequence[str]
) -> None:
    """Weights of the mixture of least variance, or of least MSE_n, and its gain on the half it was not fitted on."""
    whole = next(moments_by_cell(measured, measured.gradient))[2]
    fitted, held = (half.replicates() for half in measured.gradient.halves())
    for n in (None, *batch_sizes):
        keys: dict[str, Any] = {"layer": "all", "batch_size": n}
        weights = _weights(whole, plan.maps, n)
        rows.add("mixture_weight", jackknife(weights, whole.count), estimator=np.array(names, object), **keys)
        weight = _weights(fitted, plan.maps, n)[0]
        # on the held-out half, with bias again from the map of less variance
        value, bias = weight @ plan.maps.value, weight @ _bias(held.S[:, 0], plan.maps)
        error = _form(held.S[:, 0], value[None])[:, 0]
        plain = _form(held.S[:, 0], plan.maps.value[:1])[:, 0]
        if n is not None:
            error, plain = error / n + _form(held.M[:, 0], bias[None])[:, 0], plain / n
        gain = jackknife(error / plain, held.count).inverse()
        rows.add("mixture_gain", gain, estimator="mixture", **keys)


def _weights(moments: Moments, maps: Maps, n: int | None) -> np.ndarray:
    """Replicates [R, K] of the weights of the best mixture."""
    S, M = moments.S[:, 0], moments.M[:, 0]
    bias = _bias(S, maps)
    return mixture_weights(maps.value @ S @ maps.value.T, bias @ M @ bias.T, 0 if n is None else n)
