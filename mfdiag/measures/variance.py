"""`mfdiag variance`: gradient statistics of estimators, Jacobian statistics of the model, per-sample contributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mfdiag.estimators import Estimator
from mfdiag.gradients.moments import Moments, jackknife, positive_jackknife, replicate_sizes
from mfdiag.gradients.run import Measured
from mfdiag.measures.cells import moments_by_cell, scalars_by_cell
from mfdiag.measures.plans import EstimatorPlan
from mfdiag.measures.rows import Rows
from mfdiag.tables.check import conform

__all__ = ["hill", "samples_table", "top_share", "variance_table"]

_TOP = 0.01
_TAIL = 0.05


def variance_table(
    measured: Measured, plan: EstimatorPlan, common: Mapping[str, Any], dim: int, by_layer: bool
) -> pd.DataFrame:
    """Rows of the table `variance` (tables/schema.py); `dim` is the number of coordinates of a sample."""
    rows = Rows("variance", common)
    _gradients(rows, measured, plan, by_layer)
    _concentration(rows, measured, plan.estimators)
    _losses(rows, measured, plan.estimators)
    _jacobian(rows, measured, dim)
    return rows.frame()


def _gradients(rows: Rows, measured: Measured, plan: EstimatorPlan, by_layer: bool) -> None:
    for box, layer, moments in moments_by_cell(measured, measured.gradient, by_layer):
        for group, estimator in enumerate(plan.estimators):
            for quantity, replicates in _statistics(moments, group, plan).items():
                spread = positive_jackknife if quantity.endswith("variance") else jackknife
                estimate = spread(replicates, moments.count)
                if quantity == "noise_scale":
                    estimate = estimate.inverse()
                rows.add(quantity, estimate, box, layer=layer, estimator=estimator.name)


def _statistics(moments: Moments, group: int, plan: EstimatorPlan) -> dict[str, np.ndarray]:
    """Quantity -> replicates [R]. `noise_scale` comes as its reciprocal, which has a finite variance."""
    variance, mean = moments.S[:, group, 0, 0], moments.M[:, group, 0, 0]
    found = {"variance": variance}
    if plan.known and plan.affine:
        # G = E[G given x_t] + fluctuation: the mean from the first part alone (Rao-Blackwell), the noise from the rest
        gram = moments.Q[:, group]
        found["conditional_variance"] = gram[:, 0, 0] - 2 * gram[:, 0, 1] + gram[:, 1, 1]
        mean = moments.M[:, group, 1, 1]
    elif plan.known:
        found["conditional_variance"] = moments.Q[:, group, 1, 1]
    return {**found, "mean_norm2": mean, "snr": mean / variance, "noise_scale": mean / variance}


def _concentration(rows: Rows, measured: Measured, estimators: Sequence[Estimator]) -> None:
    """How much of the squared gradient norm the largest samples carry; over all samples, never for a stratified map."""
    if measured.stratified:
        return
    for group, estimator in enumerate(estimators):
        norms = measured.gradient.diagonal[:, group, 0].numpy()
        for quantity, statistic in (("top1_share", top_share), ("tail_index", hill)):
            left_out = [statistic(norms[measured.cells.block != b]) for b in range(measured.cells.blocks)]
            count = np.bincount(measured.cells.block)
            replicates = np.array([statistic(norms), *left_out])
            rows.add(quantity, jackknife(replicates, count), layer="all", estimator=estimator.name)


def top_share(norms: np.ndarray) -> float:
    """Share of the total that the largest 1 % of values [N] carry (a fractional sample counts in part)."""
    ordered, wanted = np.sort(norms)[::-1], _TOP * len(norms)
    whole = int(wanted)
    part = ordered[:whole].sum() + (wanted - whole) * ordered[whole]
    return float(part / ordered.sum())


def hill(norms: np.ndarray) -> float:
    """Hill's estimator of the tail index over the largest 5 % of values [N]; at 2 or below, no finite variance."""
    k = max(2, int(_TAIL * len(norms)))
    top = np.sort(norms)[-k - 1 :]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(top[1:] / top[0])
        return float(len(logs) / logs.sum())


def _losses(rows: Rows, measured: Measured, estimators: Sequence[Estimator]) -> None:
    losses = {e.name: measured.scalars[f"loss/{e.name}"] for e in estimators}
    both = {**losses, **{f"{name}^2": loss**2 for name, loss in losses.items()}}
    for box, means, count in scalars_by_cell(measured, both):
        n = replicate_sizes(count)
        for name in losses:
            with np.errstate(divide="ignore", invalid="ignore"):
                variance = (means[f"{name}^2"] - means[name] ** 2) * n / (n - 1)
            rows.add("loss_variance", positive_jackknife(variance, count), box, layer="all", estimator=name)


def _jacobian(rows: Rows, measured: Measured, dim: int) -> None:
    names = [name for name in ("kappa", "jacobi_fro2", "jacobi_spectral") if name in measured.scalars]
    for box, means, count in scalars_by_cell(measured, {name: measured.scalars[name] for name in names}):
        quantities: dict[str, np.ndarray] = {name: means[name] for name in names[1:]}
        quantities |= {"kappa_signed": means["kappa"], "kappa_magnitude": np.sqrt(means["jacobi_fro2"] / dim)}
        for quantity, replicates in quantities.items():
            rows.add(quantity, jackknife(replicates, count), box, layer="all", estimator=None)


def samples_table(measured: Measured, plan: EstimatorPlan, common: Mapping[str, Any]) -> pd.DataFrame:
    """Rows of the table `samples`: each sample's squared gradient norm and loss, by estimator."""
    n = len(measured.t)
    parts = []
    for group, estimator in enumerate(plan.estimators):
        values = {
            "grad_norm2": measured.gradient.diagonal[:, group, 0].numpy(),
            "loss": measured.scalars[f"loss/{estimator.name}"],
        }
        for quantity, value in values.items():
            columns: dict[str, Any] = {**common, "estimator": estimator.name}
            columns |= {"index": np.arange(n), "r": measured.r, "t": measured.t}
            columns["label"] = pd.array([None] * n if measured.labels is None else measured.labels, dtype="Int64")
            columns |= {"quantity": quantity, "value": value, "std_error": np.nan, "ci_low": np.nan, "ci_high": np.nan}
            status = np.where(np.isfinite(value), "ok", "nonfinite")
            parts.append(pd.DataFrame({**columns, "n_samples": 1, "status": status}))
    return conform("samples", pd.concat(parts, ignore_index=True))
