"""What one pass over per-sample gradients says: noise, where it comes from, and what each remedy would do to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mfdiag.coefficients.batch_optimum import batch_optimum
from mfdiag.diagnosis.measured import Measured, bins, blocks, ratio
from mfdiag.gradients.accumulate import sum_layers
from mfdiag.gradients.intervals import Estimate, skewed_jackknife
from mfdiag.gradients.moments import Moments, scalar_replicates
from mfdiag.gradients.sample_pass import PassResult
from mfdiag.measures.parts.concentration import tail_status
from mfdiag.measures.parts.estimator_plan import EstimatorPlan
from mfdiag.measures.run.measurement import Measurement
from mfdiag.measures.variance import TABLE

__all__ = ["COPIED", "probe_gradient"]

COPIED = (
    "variance",
    "conditional_variance",
    "mean_norm2",
    "noise_scale",
    "snr",
    "top1_share",
    "tail_index",
    "loss_variance",
    "conflict_cosine",
)
"""Quantities of table `variance` that table `doctor` repeats."""

_CLIPPED = 0.99  # quantile of |G|^2
_POWERS = (0.5, 1.0)


def probe_gradient(measurement: Measurement, batch_size: int) -> tuple[list[Measured], dict[str, pd.DataFrame]]:
    """Measure gradients in one pass.

    Args:
        measurement: The network, its samples, and MeanFlow with one proxy's tangent as estimators.
        batch_size: The n of optima and errors.

    Returns:
        Measurements of table `doctor`, and the tables `variance` and `samples` of the same pass.
    """
    assert TABLE.rows is not None
    plan = EstimatorPlan(measurement.estimators, measurement.request.weighting, measurement.posterior_known)
    result = measurement.run_pass(plan)
    frames = dict(TABLE.rows(measurement, plan, result))
    root = result.gradient.moments[max(result.gradient.moments)]
    moments = sum_layers(root).replicates()
    norms = result.gradient.diagonal[:, 0, plan.column(0)].numpy()
    tail = tail_status(norms)
    measured = [
        *_layers(root, moments),
        *_times(result, norms),
        *_intervals(result, norms),
        *_tangent(moments, plan, batch_size),
        *_weights(measurement, result, plan),
    ]
    return [entry._replace(tail=tail) for entry in measured], frames


def _layers(root: Any, moments: Moments) -> Iterator[Measured]:
    """Share of each layer in the variance of MeanFlow's gradient."""
    whole = moments.S[:, 0, 0, 0]
    for layer, part in root.items():
        share = skewed_jackknife(part.replicates().S[:, 0, 0, 0] / whole, moments.count, nonnegative=True)
        yield Measured("variance_share", share, keys={"layer": layer, "estimator": "meanflow"})


def _times(result: PassResult, norms: np.ndarray) -> Iterator[Measured]:
    """Which times carry the squared norm of the gradient, and what another density or clipping would do to it."""
    for box, inside in bins(result.t):
        yield Measured("moment_share", ratio(norms * inside, norms), box, {"estimator": "meanflow"})
    # docs/theory.md#times-density: sampling cell k with probability ~ p_k sqrt(m_k) leaves (sum_k p_k sqrt(m_k))^2 of
    # sum_k p_k m_k
    yield Measured("times_moment", _squared_root_moment(norms, result.t), keys={"estimator": "meanflow"})
    clipped = ratio(np.minimum(norms, np.quantile(norms, _CLIPPED)), norms)
    yield Measured("clipped_moment", clipped, keys={"estimator": "meanflow"})


def _squared_root_moment(norms: np.ndarray, t: np.ndarray) -> Estimate:
    """(sum_k p_k sqrt(m_k))^2 / sum_k p_k m_k over the bins of t."""
    masks = np.stack([inside for _, inside in bins(t)], axis=1).astype(float)
    means, count = scalar_replicates(np.concatenate([masks, masks * norms[:, None]], axis=1), *blocks(len(norms)))
    share, moment = np.split(means, 2, axis=1)
    root = np.sqrt(np.maximum(share * moment, 0)).sum(1)  # p sqrt(m) = sqrt(p (p m))
    return skewed_jackknife(root**2 / moment.sum(1), count, nonnegative=True)


def _intervals(result: PassResult, norms: np.ndarray) -> Iterator[Measured]:
    """What the derivative in the target adds: it enters where r < t alone."""
    apart = result.r < result.t
    if apart.all() or not apart.any():
        return
    estimate = ratio(norms * apart / apart.mean(), norms * ~apart / (~apart).mean())
    yield Measured("interval_moment", estimate, keys={"estimator": "meanflow"})
    share = apart.mean()
    density = np.where(apart, 0.5, (1 - share / 2) / (1 - share))  # of the pairs with half of r < t drawn with r = t
    yield Measured("equal_times_moment", ratio(norms * density, norms), keys={"estimator": "meanflow"})


def _tangent(moments: Moments, plan: EstimatorPlan, n: int) -> Iterator[Measured]:
    """The best mixture of MeanFlow's tangent with the proxy's, and the error at a batch of n with either."""
    if len(plan.estimators) < 2:
        return
    S, (zero, one) = moments.S[:, 0], (plan.column(0), plan.column(1))
    columns = np.eye(S.shape[-1])
    control = columns[one] - columns[zero]
    # docs/theory.md#rao-blackwell: of the conditional means, where they are measured
    shift = int(plan.posterior_known and plan.affine)
    bias = moments.squared_mean(columns[one + shift] - columns[zero + shift])
    cross = np.einsum("c,rcd,d->r", columns[zero], S, control)
    variance = np.einsum("c,rcd,d->r", control, S, control)
    keys = {"batch_size": n, "estimator": plan.estimators[1].name}
    if not variance[0]:
        return
    best = batch_optimum(cross, variance, bias, n)
    yield Measured("tangent_optimum", best, keys=keys)
    yield Measured(
        "critical_batch", bias.estimate(denominator=variance).inverse(), keys={"estimator": keys["estimator"]}
    )
    plain = S[:, zero, zero]
    for beta, name in ((1.0, plan.estimators[1].name), (float(best.value), "plane")):
        mixture = columns[zero] + beta * control
        noise = np.einsum("c,rcd,d->r", mixture, S, mixture) / n
        squared_bias = moments.squared_mean(beta * (columns[one + shift] - columns[zero + shift]))
        error = squared_bias.estimate(added=noise, denominator=plain / n)
        yield Measured("mse_ratio", error, keys={"batch_size": n, "estimator": name})


def _weights(measurement: Measurement, result: PassResult, plan: EstimatorPlan) -> Iterator[Measured]:
    """Second moment under adaptive weights over that without, each for weights of mean 1."""
    residual2 = result.scalars["residual2/meanflow"]
    norms = result.gradient.diagonal[:, 0, plan.column(0)].numpy()
    plain = norms / plan.weighting.sample_weights(residual2, measurement.dim) ** 2
    for p in _POWERS:
        weight = replace(plan.weighting, p=p).sample_weights(residual2, measurement.dim)
        estimate = ratio((weight / weight.mean()) ** 2 * plain, plain)
        yield Measured("weight_moment", estimate, keys={"target": f"p{p:g}", "estimator": "meanflow"})
