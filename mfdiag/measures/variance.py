"""`mfdiag variance`: gradient statistics of estimators, Jacobian statistics of the model, per-sample contributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mfdiag.estimators import Estimator
from mfdiag.gradients.cells import Box
from mfdiag.gradients.moments import Moments, jackknife, positive_jackknife, replicate_sizes
from mfdiag.gradients.sample_pass import PassResult
from mfdiag.measures.cells import moments_by_cell, scalars_by_cell
from mfdiag.measures.guided import add_guidance
from mfdiag.measures.plans import EstimatorPlan
from mfdiag.measures.rows import Rows
from mfdiag.measures.semi_gradient import gap_statistics
from mfdiag.measures.velocity_field import probe_quantile
from mfdiag.tables.check import conform

__all__ = ["conflict_cosine", "hill", "samples_table", "top_share", "variance_table", "worst_samples"]

_TOP = 0.01
_TAIL = 0.05
_POWERS = (0.0, 0.5, 1.0)


def variance_table(
    measured: PassResult, plan: EstimatorPlan, common: Mapping[str, Any], dim: int, by_layer: bool
) -> pd.DataFrame:
    """Rows of the table `variance` (tables/schema.py); `dim` is the number of coordinates of a sample."""
    rows = Rows("variance", common)
    _gradients(rows, measured, plan, by_layer)
    if plan.guided:
        add_guidance(rows, measured, plan, by_layer)
    _concentration(rows, measured, plan)
    _losses(rows, measured, plan.estimators)
    _weights(rows, measured, plan, dim)
    _jacobian(rows, measured, dim)
    _velocity(rows, measured)
    return rows.frame()


def _gradients(rows: Rows, measured: PassResult, plan: EstimatorPlan, by_layer: bool) -> None:
    for box, layer, moments in moments_by_cell(measured, measured.gradient, by_layer):
        for k, estimator in enumerate(plan.estimators):
            for quantity, replicates in _statistics(moments, k * plan.each, plan).items():
                spread = positive_jackknife if quantity.endswith("variance") else jackknife
                estimate = spread(replicates, moments.count)
                if quantity == "noise_scale":
                    estimate = estimate.inverse()
                rows.add(quantity, estimate, box, layer=layer, estimator=estimator.name)
        if plan.meanflow is not None:
            whole = plan.meanflow * plan.each + (plan.known and plan.affine)  # the conditional mean, where there is one
            conflict = jackknife(conflict_cosine(moments, whole, plan.consistency), moments.count)
            # trajectory consistency carries the factor t - r
            at_equal_times = moments.Q[0, 0, plan.consistency, plan.consistency] == 0
            rows.add("conflict_cosine", conflict, box, layer=layer, estimator="meanflow", degenerate=at_equal_times)
            if plan.losses:
                found = gap_statistics(moments, plan.meanflow * plan.each, whole, plan.gap)
                _gap(rows, found, moments.count, box, layer, at_equal_times)


def _statistics(moments: Moments, own: int, plan: EstimatorPlan) -> dict[str, np.ndarray]:
    """Quantity -> replicates [R], of the estimator whose columns start at `own`.

    `noise_scale` comes as its reciprocal, which has a finite variance.
    """
    variance, mean = moments.S[:, 0, own, own], moments.M[:, 0, own, own]
    found = {"variance": variance}
    other = own + 1
    if plan.known and plan.affine:
        # G = E[G given x_t] + fluctuation: the mean from the first part alone (Rao-Blackwell), the noise from the rest
        gram = moments.Q[:, 0]
        found["conditional_variance"] = gram[:, own, own] - 2 * gram[:, own, other] + gram[:, other, other]
        mean = moments.M[:, 0, other, other]
    elif plan.known:
        found["conditional_variance"] = moments.Q[:, 0, other, other]
    return {**found, "mean_norm2": mean, "snr": mean / variance, "noise_scale": mean / variance}


def conflict_cosine(moments: Moments, whole: int, consistency: int) -> np.ndarray:
    """Cosine [R] between the mean gradients of trajectory flow matching and trajectory consistency.

    `whole` and `consistency` are the columns of MeanFlow's gradient and of its second part.
    """
    # alpha-Flow (arXiv 2510.20771), equation 6: e_0 = (u - v_c) + (t-r) (du/dx v_c + du/dt), so G = F + C and
    # <E F, E C> = <E G, E C> - |E C|^2,   |E F|^2 = |E G|^2 - 2 <E G, E C> + |E C|^2
    M = moments.M[:, 0]
    c2, cross = M[:, consistency, consistency], M[:, whole, consistency]
    return (cross - c2) / np.sqrt((M[:, whole, whole] - 2 * cross + c2) * c2)


def _gap(
    rows: Rows, found: Mapping[str, np.ndarray], count: np.ndarray, box: Box, layer: str, at_equal_times: bool
) -> None:
    for quantity, replicates in found.items():
        estimate = jackknife(replicates, count)
        degenerate = at_equal_times and quantity.endswith(("ratio", "cosine"))
        if quantity.endswith("ratio"):
            estimate = estimate.inverse()
        rows.add(quantity, estimate, box, layer=layer, estimator="meanflow", degenerate=degenerate)


def _concentration(rows: Rows, measured: PassResult, plan: EstimatorPlan) -> None:
    """How much of the squared gradient norm the largest samples carry; over all samples, never for a stratified map."""
    if measured.stratified:
        return
    for k, estimator in enumerate(plan.estimators):
        norms = _norms2(measured, plan, k)
        for quantity, statistic in (("top1_share", top_share), ("tail_index", hill)):
            left_out = [statistic(norms[measured.cells.block != b]) for b in range(measured.cells.blocks)]
            count = np.bincount(measured.cells.block)
            replicates = np.array([statistic(norms), *left_out])
            rows.add(quantity, jackknife(replicates, count), layer="all", estimator=estimator.name)


def _norms2(measured: PassResult, plan: EstimatorPlan, k: int) -> np.ndarray:
    """|G_i|^2 [N] of estimator k."""
    return measured.gradient.diagonal[:, 0, k * plan.each].numpy()


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


def _losses(rows: Rows, measured: PassResult, estimators: Sequence[Estimator]) -> None:
    losses = {e.name: measured.scalars[f"loss/{e.name}"] for e in estimators}
    both = {**losses, **{f"{name}^2": loss**2 for name, loss in losses.items()}}
    for box, means, count in scalars_by_cell(measured, both):
        n = replicate_sizes(count)
        for name in losses:
            with np.errstate(divide="ignore", invalid="ignore"):
                variance = (means[f"{name}^2"] - means[name] ** 2) * n / (n - 1)
            rows.add("loss_variance", positive_jackknife(variance, count), box, layer="all", estimator=name)


def _weights(rows: Rows, measured: PassResult, plan: EstimatorPlan, dim: int) -> None:
    """What the adaptive weight does to the second moment of the gradient, for several p."""
    values: dict[str, np.ndarray] = {}
    for k, estimator in enumerate(plan.estimators):
        residual2 = measured.scalars[f"residual2/{estimator.name}"]
        unweighted = _norms2(measured, plan, k) / plan.weighting.sample_weights(residual2, dim) ** 2
        for p in _POWERS:
            weight = replace(plan.weighting, p=p).sample_weights(residual2, dim)
            values |= {f"{estimator.name} {p} w": weight, f"{estimator.name} {p} G": weight**2 * unweighted}
    for box, means, count in scalars_by_cell(measured, values):
        for estimator in plan.estimators:
            for p in _POWERS:
                # theory, section 3: mean_i w_i(p)^2 |G_i|^2; a constant factor of the weight must not count
                moment = means[f"{estimator.name} {p} G"] / means[f"{estimator.name} {p} w"] ** 2
                estimate = positive_jackknife(moment, count)
                rows.add(f"second_moment_p{p:g}", estimate, box, layer="all", estimator=estimator.name)


def _jacobian(rows: Rows, measured: PassResult, dim: int) -> None:
    names = [name for name in ("kappa", "jacobi_fro2", "jacobi_spectral") if name in measured.scalars]
    for box, means, count in scalars_by_cell(measured, {name: measured.scalars[name] for name in names}):
        quantities: dict[str, np.ndarray] = {name: means[name] for name in names[1:]}
        quantities |= {"kappa_signed": means["kappa"], "kappa_magnitude": np.sqrt(means["jacobi_fro2"] / dim)}
        for quantity, replicates in quantities.items():
            rows.add(quantity, jackknife(replicates, count), box, layer="all", estimator=None)


def _velocity(rows: Rows, measured: PassResult) -> None:
    """Numbers of the velocity field's own Jacobian, where they were measured."""
    names = ("divergence", "velocity_fro2", "antisymmetric_fro2")
    if names[0] not in measured.scalars:
        return
    for box, means, count in scalars_by_cell(measured, {name: measured.scalars[name] for name in names}):
        share = means["antisymmetric_fro2"] / means["velocity_fro2"]
        for quantity, replicates in (("divergence", means["divergence"]), ("antisymmetric_share", share)):
            rows.add(quantity, jackknife(replicates, count), box, layer="all", estimator=None)


def samples_table(measured: PassResult, plan: EstimatorPlan, common: Mapping[str, Any]) -> pd.DataFrame:
    """Rows of the table `samples`: each sample's squared gradient norm and loss by estimator, and its divergence."""
    n = len(measured.t)
    label = pd.array([None] * n if measured.labels is None else measured.labels, dtype="Int64")
    keys = {**common, "index": np.arange(n), "r": measured.r, "t": measured.t, "label": label}
    parts = []

    def add(estimator: str | None, quantity: str, value: np.ndarray, error: np.ndarray | float = np.nan) -> None:
        half = probe_quantile() * error
        columns = {**keys, "estimator": estimator, "quantity": quantity, "value": value, "std_error": error}
        columns |= {"ci_low": value - half, "ci_high": value + half, "n_samples": 1}
        parts.append(pd.DataFrame({**columns, "status": np.where(np.isfinite(value), "ok", "nonfinite")}))

    for k, estimator in enumerate(plan.estimators):
        add(estimator.name, "grad_norm2", _norms2(measured, plan, k))
        add(estimator.name, "loss", measured.scalars[f"loss/{estimator.name}"])
    if "divergence" in measured.scalars:
        add(None, "divergence", measured.scalars["divergence"], measured.scalars.get("divergence_error", np.nan))
    return conform("samples", pd.concat(parts, ignore_index=True))


def worst_samples(samples: pd.DataFrame, count: int = 5) -> pd.DataFrame:
    """The `count` rows of largest |G|^2 for each model and estimator, from the table `samples`.

    A column `share` says what part of the sum over all samples each is.
    """
    norms = samples[samples["quantity"] == "grad_norm2"]
    groups = norms.groupby(["checkpoint", "step", "dataset", "proxy", "times", "estimator"], dropna=False, sort=False)
    share = norms["value"] / groups["value"].transform("sum")
    largest = groups["value"].rank(ascending=False, method="first") <= count
    order = groups.ngroup()[largest].to_frame("group").assign(value=-norms["value"]).sort_values(["group", "value"])
    return norms.assign(share=share).loc[order.index]
