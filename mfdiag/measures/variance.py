"""`mfdiag variance`: gradient statistics of estimators, Jacobian statistics of the model, per-sample contributions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mfdiag.measures.run.table import MeasuredTable
from mfdiag.tables.columns import (
    BINS,
    CONDITIONAL_VARIANCE,
    GRADIENT2,
    LAYER,
    VARIANCE,
    gradient_table,
)
from mfdiag.tables.fields import Column, Quantity

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from mfdiag.flow.data.datasets import Data
    from mfdiag.gradients.intervals import Estimate
    from mfdiag.gradients.moments import Moments
    from mfdiag.gradients.sample_pass import PassResult
    from mfdiag.measures.parts.estimator_plan import EstimatorPlan
    from mfdiag.measures.parts.rows import Rows
    from mfdiag.measures.parts.summary import Summary
    from mfdiag.measures.run.measurement import Measurement

__all__ = ["TABLE", "conflict_cosine"]

_POWERS = (0.0, 0.5, 1.0)  # of the adaptive weight: none, and the two in use

SCHEMA = gradient_table(
    "variance",
    "variance",
    "Gradient statistics of each estimator, and Jacobian statistics of the model.",
    (LAYER, *BINS),
    VARIANCE,
    CONDITIONAL_VARIANCE,
    Quantity(
        "mean_norm2",
        "|E G|^2 = (|sum_i G_i|^2 - sum_i |G_i|^2) / (N (N-1))",
        GRADIENT2,
        "Squared norm of the mean gradient, estimated without bias: may be negative.",
        kind="nonnegative",
    ),
    Quantity(
        "noise_scale",
        "variance / mean_norm2",
        "samples",
        "Batch size at which noise and signal are equal (simple noise scale, arXiv 1812.06162).",
        kind="nonnegative",
    ),
    Quantity(
        "snr",
        "mean_norm2 / variance",
        "1",
        "Signal-to-noise ratio, in power, of one sample's gradient: the inverse of noise_scale, finite where "
        "the mean vanishes.",
        kind="nonnegative",
    ),
    Quantity(
        "top1_share",
        "sum of the largest 1 % of |G_i|^2 / sum_i |G_i|^2",
        "1",
        "Fraction of the squared gradient norm that the largest 1 % of samples carry; 0.01 if all are equal.",
    ),
    Quantity(
        "tail_index",
        "Hill's alpha in P(|G|^2 > x) ~ x^-alpha",
        "1",
        "Weight of the upper tail of |G|^2: at 2 or below, the interval of the variance is unreliable; at 1 or below, "
        "no finite variance exists.",
    ),
    Quantity(
        "conflict_cosine",
        "<E G_TFM, E G_TC> / (|E G_TFM| |E G_TC|)",
        "1",
        "Cosine between the mean gradients of the two parts of MeanFlow's residual (estimator meanflow): "
        "trajectory flow matching u - v_c and trajectory consistency (t-r) (du/dx v_c + du/dt) (alpha-Flow, arXiv "
        "2510.20771, equation 6). Below 0 they pull against each other. From unbiased products, whose noise may take "
        "it out of [-1, 1].",
        kind="cosine",
    ),
    Quantity(
        "semi_gradient_gap",
        "|E D|^2, D = 2 w (t-r) d_theta(du/dx v_c + du/dt)^T e",
        GRADIENT2,
        "Squared norm of what the stop-gradient leaves out of the mean gradient of MeanFlow's loss (estimator "
        "meanflow; arXiv 2605.09235, Theorem 3), estimated without bias: may be negative. With --extra "
        "semi_gradient_gap, like all quantities of this name.",
        kind="nonnegative",
    ),
    Quantity(
        "semi_gradient_gap_field",
        "|E 2 (t-r) d_theta(du/dx v + du/dt)^T rho|^2",
        GRADIENT2,
        "The same for the first of its two terms, from the mean-field residual rho = e at v_c = v; needs a "
        "posterior over the data, and no weight.",
        kind="nonnegative",
    ),
    Quantity(
        "semi_gradient_gap_noise",
        "|E d_theta tr(J Sigma J^T)|^2",
        GRADIENT2,
        "The same for the second term, with which the full gradient favors parameters of less conditional noise; "
        "needs a posterior over the data, and no weight.",
        kind="nonnegative",
    ),
    Quantity(
        "semi_gradient_gap_ratio",
        "|E D|^2 / |E G|^2",
        "1",
        "Squared norm of the gap over that of MeanFlow's own mean gradient. Grows without bound as training converges.",
        kind="nonnegative",
    ),
    Quantity(
        "semi_gradient_gap_cosine",
        "<E D, E G> / (|E D| |E G|)",
        "1",
        "Cosine between the gap and MeanFlow's mean gradient: at -1 they cancel. From unbiased products, whose noise "
        "may take it out of [-1, 1].",
        kind="cosine",
    ),
    Quantity(
        "semi_gradient_gap_variance",
        "tr Cov(G + D) - tr Cov G",
        GRADIENT2,
        "Increase of the gradient variance without the stop-gradient; below 0, a decrease.",
    ),
    Quantity(
        "guidance_variance_ratio",
        "tr Cov G / tr Cov G without guidance",
        "1",
        "Factor by which the objective's guidance (--guidance) changes the gradient variance, on the same samples and "
        "labels.",
    ),
    Quantity(
        "guided_variance",
        "tr Cov v_g, v_g = a v_c + q",
        "velocity²",
        "Variance of the guided velocity over x_0, x_1, labels, r and t: the sum of its parts data, network and cross.",
    ),
    Quantity("guided_variance_data", "tr Cov(a v_c)", "velocity²", "The part from the conditional velocity."),
    Quantity("guided_variance_network", "tr Cov q", "velocity²", "The part from the network's own velocities."),
    Quantity("guided_variance_cross", "2 tr Cov(a v_c, q)", "velocity²", "The part from both together."),
    Quantity(
        "guided_variance_conditional",
        "E[tr Cov(v_g | x_t, t, label)] = E[a^2 tr Sigma]",
        "velocity²",
        "The part left once the point and the label are given; needs a posterior over the data.",
    ),
    Quantity(
        "guided_variance_between",
        "tr Cov E[v_g | x_t, t, label]",
        "velocity²",
        "The part between points, which the network can learn.",
    ),
    Quantity("jacobi_fro2", "E|J|_F^2", "1", "Mean squared Frobenius norm of the Jacobi factor J = A - I."),
    Quantity("jacobi_spectral", "E|J|_2", "1", "Mean largest singular value of the Jacobi factor."),
    Quantity("kappa_signed", "E[tr(J)] / d", "1", "Signed kappa: mean diagonal entry of the Jacobi factor."),
    Quantity("kappa_magnitude", "sqrt(E|J|_F^2 / d)", "1", "Magnitude kappa: root mean square gain of J."),
    Quantity(
        "divergence",
        "E[tr D], D = du(x_t, t, t)/dx",
        "1",
        "Mean divergence of the network's velocity field, at r = t; above 16 dimensions with --extra divergence, "
        "from random probes.",
    ),
    Quantity(
        "antisymmetric_share",
        "E|(D - D^T)/2|_F^2 / E|D|_F^2",
        "1",
        "Antisymmetric (rotating) fraction of the velocity field's Jacobian. With noise N(0, I) independent of the "
        "data, the true field is a multiple of x plus one of the score, and this is 0. Measured with divergence.",
    ),
    Quantity("loss_variance", "Var(w |e|^2)", "loss²", "Variance of the per-sample loss.", kind="nonnegative"),
    *(
        Quantity(
            f"second_moment_p{p:g}",
            f"E[w^2 |G|^2] / E[w]^2, w = (|e|^2 + eps)^-{p:g}, G without weight",
            GRADIENT2,
            f"Second moment of the gradient {under}, for weights of mean 1, so that the rows of different p can "
            "be compared; eps is that of --weighting, 0.001 without one.",
        )
        for p, under in (
            (0, "without a weight"),
            (0.5, "under the adaptive weight of power 0.5"),
            (1, "under the adaptive weight of power 1"),
        )
    ),
)

SAMPLES = gradient_table(
    "samples",
    "variance",
    "Raw per-sample numbers, one row per sample and quantity; std_error and interval are null, except for a "
    "divergence from random probes.",
    (
        Column("index", "int64", "Sample number i, from 0."),
        Column("r", "float64", "Start of the sample's time interval, in [0, 1]."),
        Column("t", "float64", "End of the sample's time interval, in [0, 1]."),
        Column("label", "int64", "Class label of the sample; null without labels.", nullable=True),
    ),
    Quantity("grad_norm2", "|G_i|^2", GRADIENT2, "Squared norm of the per-sample gradient."),
    Quantity("loss", "w_i |e_i|^2", "loss", "Per-sample loss."),
    Quantity(
        "divergence",
        "tr D_i, D = du(x_t, t, t)/dx",
        "1",
        "Divergence of the network's velocity field at the sample; estimator is null. Above 16 dimensions with "
        "--extra divergence, from random probes; its interval covers the error of the probes alone.",
    ),
)


def plan(measurement: Measurement) -> EstimatorPlan:
    """One pass for all estimators; under guidance, also the parts of v_g and the gradient without guidance."""
    from mfdiag.measures.parts.estimator_plan import EstimatorPlan
    from mfdiag.measures.parts.velocity_field import EXACT_DIM

    request, guidance = measurement.request, measurement.subject.guidance
    estimators = measurement.estimators
    if measurement.say is not None and measurement.dim > EXACT_DIM and "divergence" not in request.extras:
        measurement.say(
            f"{measurement.dim} coordinates: above {EXACT_DIM}, divergence and antisymmetric_share take further "
            "passes; request them with --extra divergence."
        )
    # a teacher's velocity leaves nothing of v_c to split
    split = guidance is not None and guidance.changes_velocity and guidance.network != "teacher"
    return EstimatorPlan(estimators, request.weighting, measurement.posterior_known, request.extras, split)


def rows(measurement: Measurement, plan: EstimatorPlan, result: PassResult) -> Mapping[str, pd.DataFrame]:
    """Tables `variance` and `samples`."""
    from mfdiag.measures.parts.concentration import variance_tails

    rows, by_layer, data = measurement.rows(), measurement.request.by_layer, measurement.draws.data
    norms = result.gradient.diagonal[:, 0].numpy()
    tails = variance_tails(norms[:, [plan.column(k) for k in range(len(plan.estimators))]], data)
    _add_gradients(rows, result, plan, by_layer, tails, data)
    if plan.guided:
        _add_guidance(rows, result, plan, by_layer, tails, data)
    _add_concentration(rows, result, plan, data)
    _add_losses(rows, result, plan, data)
    _add_second_moments(rows, result, plan, measurement)
    _add_jacobian(rows, result, measurement.dim)
    _add_velocity(rows, result)
    return {"variance": rows.frame(), "samples": _samples(result, plan, measurement.common())}


def _add_gradients(
    rows: Rows, result: PassResult, plan: EstimatorPlan, by_layer: bool, tails: np.ndarray, data: Data
) -> None:
    """Moments of each estimator's gradient, of the tails `tails`, and how MeanFlow's two parts conflict."""
    from mfdiag.gradients.intervals import cosine_jackknife
    from mfdiag.measures.parts.cells import moments_by_cell
    from mfdiag.measures.parts.concentration import FINITE_VARIANCE, heaviest_tail, heavy_tails
    from mfdiag.measures.parts.semi_gradient import gap_statistics

    norms = result.gradient.diagonal[:, 0].numpy()
    of_means = heavy_tails(norms, data, FINITE_VARIANCE)
    gap_tail = heaviest_tail(norms[:, plan.gap[:1]], data) if plan.losses else None
    for box, layer, moments in moments_by_cell(result, result.gradient, by_layer):
        for k, estimator in enumerate(plan.estimators):
            for quantity, estimate in _statistics(moments, plan.column(k), plan).items():
                tail = of_means[plan.column(k)] if quantity == "mean_norm2" else tails[k]
                rows.add(quantity, estimate, box, layer=layer, estimator=estimator.name, tail=tail)
        if plan.meanflow is None:
            continue
        own = plan.column(plan.meanflow)
        mean = own + (plan.posterior_known and plan.affine)  # the conditional mean, where it is measured
        conflict = cosine_jackknife(conflict_cosine(moments, mean, plan.consistency), moments.count)
        # trajectory consistency carries the factor t - r
        at_equal_times = bool(moments.Q[0, 0, plan.consistency, plan.consistency] == 0)
        keys: dict[str, Any] = {"layer": layer, "estimator": "meanflow"}
        tail = of_means[own]
        rows.add("conflict_cosine", conflict, box, **keys, degenerate=at_equal_times, tail=tail)
        statistics = gap_statistics(moments, own, mean, plan.gap) if plan.losses else {}
        for quantity, estimate in statistics.items():
            degenerate = at_equal_times and quantity.endswith(("ratio", "cosine"))
            tail = gap_tail if quantity.endswith("variance") else tail
            rows.add(quantity, estimate, box, **keys, degenerate=degenerate, tail=tail)


def _statistics(moments: Moments, own: int, plan: EstimatorPlan) -> dict[str, Estimate]:
    """Quantity -> estimate, of the estimator whose columns start at `own`."""
    import numpy as np

    from mfdiag.gradients.intervals import skewed_jackknife

    variances, mean_column = {"variance": moments.S[:, 0, own, own]}, own
    conditional = own + 1  # the estimator's conditional part, see EstimatorPlan
    if plan.posterior_known and plan.affine:
        # docs/theory.md#rao-blackwell: G = E[G given x_t] + fluctuation; the mean from the first part alone, the noise
        # from the rest
        gram = moments.Q[:, 0]
        variances["conditional_variance"] = (
            gram[:, own, own] - 2 * gram[:, own, conditional] + gram[:, conditional, conditional]
        )
        mean_column = conditional
    elif plan.posterior_known:
        variances["conditional_variance"] = moments.Q[:, 0, conditional, conditional]
    estimates = {
        quantity: skewed_jackknife(replicates, moments.count, nonnegative=True)
        for quantity, replicates in variances.items()
    }
    mean = moments.squared_mean(np.eye(moments.S.shape[-1])[mean_column])
    snr = mean.estimate(denominator=variances["variance"])
    return {**estimates, "mean_norm2": mean.estimate(), "snr": snr, "noise_scale": snr.inverse()}


def conflict_cosine(moments: Moments, whole: int, consistency: int) -> np.ndarray:
    """Cosine between the mean gradients of trajectory flow matching and trajectory consistency.

    Args:
        moments: Moments of a group of gradients.
        whole: The column of MeanFlow's gradient.
        consistency: The column of its second part.

    Returns:
        Replicates [R].
    """
    # docs/theory.md#conflict; alpha-Flow (arXiv 2510.20771), equation 6:
    # e_0 = (u - v_c) + (t-r) (du/dx v_c + du/dt), so G = F + C and
    # <E F, E C> = <E G, E C> - |E C|^2,   |E F|^2 = |E G|^2 - 2 <E G, E C> + |E C|^2
    import numpy as np

    M = moments.M[:, 0]
    c2, cross = M[:, consistency, consistency], M[:, whole, consistency]
    return (cross - c2) / np.sqrt((M[:, whole, whole] - 2 * cross + c2) * c2)


def _add_guidance(
    rows: Rows, result: PassResult, plan: EstimatorPlan, by_layer: bool, tails: np.ndarray, data: Data
) -> None:
    """Quantities that exist only under guidance."""
    from mfdiag.gradients.intervals import skewed_jackknife
    from mfdiag.measures.parts.cells import moments_by_cell
    from mfdiag.measures.parts.concentration import FINITE_ERROR, variance_tails
    from mfdiag.measures.parts.guidance import SIGNED, guidance_statistics

    assert result.output is not None
    velocity_tail = next(filter(None, variance_tails(result.output.diagonal[:, 0].numpy(), data, FINITE_ERROR)), None)
    for box, _, moments in moments_by_cell(result, result.output):
        for quantity, replicates in guidance_statistics(moments, plan.posterior_known).items():
            estimate = skewed_jackknife(replicates, moments.count, nonnegative=quantity not in SIGNED)
            rows.add(quantity, estimate, box, layer="all", estimator=None, tail=velocity_tail)
    for box, layer, moments in moments_by_cell(result, result.gradient, by_layer):
        for k, (estimator, plain) in enumerate(zip(plan.estimators, plan.unguided, strict=True)):
            own = plan.column(k)
            ratio = moments.S[:, 0, own, own] / moments.S[:, 0, plain, plain]
            estimate = skewed_jackknife(ratio, moments.count, nonnegative=True)
            rows.add("guidance_variance_ratio", estimate, box, layer=layer, estimator=estimator.name, tail=tails[k])


def _add_concentration(rows: Rows, result: PassResult, plan: EstimatorPlan, data: Data) -> None:
    """How much of the squared gradient norm the largest samples carry; over all samples, never for a stratified map."""
    from mfdiag.measures.parts.concentration import tail_index, top_share, top_share_status

    if result.stratified:
        return
    for k, estimator in enumerate(plan.estimators):
        norms = _norms2(result, plan, k)
        share, name = top_share(norms), estimator.name
        rows.add("top1_share", share, tail=top_share_status(norms, data), layer="all", estimator=name)
        rows.add("tail_index", tail_index(norms), layer="all", estimator=name)


def _norms2(result: PassResult, plan: EstimatorPlan, k: int) -> np.ndarray:
    """|G_i|^2 [N] of estimator k."""
    return result.gradient.diagonal[:, 0, plan.column(k)].numpy()


def _add_losses(rows: Rows, result: PassResult, plan: EstimatorPlan, data: Data) -> None:
    import numpy as np

    from mfdiag.gradients.intervals import skewed_jackknife
    from mfdiag.gradients.moments import replicate_sizes
    from mfdiag.measures.parts.cells import scalars_by_cell
    from mfdiag.measures.parts.concentration import variance_tails

    losses = {e.name: result.scalars[f"loss/{e.name}"] for e in plan.estimators}
    squares = {f"{name}^2": loss**2 for name, loss in losses.items()}
    tails = dict(zip(losses, variance_tails(np.stack(list(squares.values()), 1), data), strict=True))
    for box, means, count in scalars_by_cell(result, losses | squares):
        n = replicate_sizes(count)
        for name in losses:
            with np.errstate(divide="ignore", invalid="ignore"):
                variance = (means[f"{name}^2"] - means[name] ** 2) * n / (n - 1)
            estimate = skewed_jackknife(variance, count, nonnegative=True)
            rows.add("loss_variance", estimate, box, layer="all", estimator=name, tail=tails[name])


def _add_second_moments(rows: Rows, result: PassResult, plan: EstimatorPlan, measurement: Measurement) -> None:
    """What the adaptive weight does to the second moment of the gradient, for several p."""
    import numpy as np

    from mfdiag.gradients.intervals import skewed_jackknife
    from mfdiag.measures.parts.cells import scalars_by_cell
    from mfdiag.measures.parts.concentration import variance_tails

    dim = measurement.dim
    values: dict[str, np.ndarray] = {}
    for k, estimator in enumerate(plan.estimators):
        residual2 = result.scalars[f"residual2/{estimator.name}"]
        unweighted = _norms2(result, plan, k) / plan.weighting.sample_weights(residual2, dim) ** 2
        for p in _POWERS:
            weight = replace(plan.weighting, p=p).sample_weights(residual2, dim)
            values |= {f"{estimator.name} {p} w": weight, f"{estimator.name} {p} G": weight**2 * unweighted}
    keys = [(e.name, p) for e in plan.estimators for p in _POWERS]
    weighted = np.stack([values[f"{name} {p} G"] for name, p in keys], 1)
    tails = dict(zip(keys, variance_tails(weighted, measurement.draws.data), strict=True))
    for box, means, count in scalars_by_cell(result, values):
        for estimator in plan.estimators:
            for p in _POWERS:
                tail = tails[estimator.name, p]
                # docs/theory.md#weights: mean_i w_i(p)^2 |G_i|^2; a constant factor of the weight must not count
                moment = means[f"{estimator.name} {p} G"] / means[f"{estimator.name} {p} w"] ** 2
                estimate = skewed_jackknife(moment, count, nonnegative=True)
                rows.add(f"second_moment_p{p:g}", estimate, box, layer="all", estimator=estimator.name, tail=tail)


def _add_jacobian(rows: Rows, result: PassResult, dim: int) -> None:
    import numpy as np

    from mfdiag.gradients.intervals import skewed_jackknife
    from mfdiag.measures.parts.cells import scalars_by_cell

    names = [name for name in ("kappa", "jacobi_fro2", "jacobi_spectral") if name in result.scalars]
    for box, means, count in scalars_by_cell(result, {name: result.scalars[name] for name in names}):
        quantities: dict[str, np.ndarray] = {name: means[name] for name in names[1:]}
        quantities |= {"kappa_signed": means["kappa"], "kappa_magnitude": np.sqrt(means["jacobi_fro2"] / dim)}
        for quantity, replicates in quantities.items():
            rows.add(quantity, skewed_jackknife(replicates, count), box, layer="all", estimator=None)


def _add_velocity(rows: Rows, result: PassResult) -> None:
    """Numbers of the velocity field's own Jacobian, where they were measured."""
    from mfdiag.gradients.intervals import skewed_jackknife
    from mfdiag.measures.parts.cells import scalars_by_cell

    names = ("divergence", "velocity_fro2", "antisymmetric_fro2")
    if names[0] not in result.scalars:
        return
    for box, means, count in scalars_by_cell(result, {name: result.scalars[name] for name in names}):
        share = means["antisymmetric_fro2"] / means["velocity_fro2"]
        for quantity, replicates in (("divergence", means["divergence"]), ("antisymmetric_share", share)):
            rows.add(quantity, skewed_jackknife(replicates, count), box, layer="all", estimator=None)


def _samples(result: PassResult, plan: EstimatorPlan, common: Mapping[str, object]) -> pd.DataFrame:
    """Table `samples`: each sample's squared gradient norm and loss by estimator, and its divergence."""
    import numpy as np
    import pandas as pd

    from mfdiag.measures.parts.velocity_field import probe_quantile
    from mfdiag.tables.check import conform

    n = len(result.t)
    label = pd.array([None] * n if result.labels is None else result.labels, dtype="Int64")
    keys = {**common, "index": np.arange(n), "r": result.r, "t": result.t, "label": label}
    parts = []

    def add(estimator: str | None, quantity: str, value: np.ndarray, error: np.ndarray | float = np.nan) -> None:
        half = probe_quantile() * error
        columns = {**keys, "estimator": estimator, "quantity": quantity, "value": value, "std_error": error}
        columns |= {"ci_low": value - half, "ci_high": value + half, "n_samples": 1}
        parts.append(pd.DataFrame({**columns, "status": np.where(np.isfinite(value), "ok", "nonfinite")}))

    for k, estimator in enumerate(plan.estimators):
        add(estimator.name, "grad_norm2", _norms2(result, plan, k))
        add(estimator.name, "loss", result.scalars[f"loss/{estimator.name}"])
    if "divergence" in result.scalars:
        add(None, "divergence", result.scalars["divergence"], result.scalars.get("divergence_error", np.nan))
    return conform("samples", pd.concat(parts, ignore_index=True))


_MAIN = ("noise_scale", "top1_share", "tail_index", "loss_variance")  # quantities that the summary has first
_ASKED = ("guidance", "semi_gradient_gap")  # beginnings of quantities that the user asked for by an option
_OTHERS = "network"  # column of what belongs to no estimator


def summary(title: str, rows: pd.DataFrame) -> list[Summary]:
    """A line per quantity, a column per estimator; what was asked for beyond the usual comes early."""
    from mfdiag.measures.parts.summary import CAUTION, Summary, estimate_text

    quantities = list(dict.fromkeys(rows["quantity"]))
    asked = [name for name in quantities if name.startswith(_ASKED)]
    of_estimators = list(dict.fromkeys(rows.loc[rows["estimator"].notna(), "quantity"]))
    order = dict.fromkeys(["variance", *asked, *_MAIN, *of_estimators, *quantities])
    estimators = [*dict.fromkeys(rows["estimator"].dropna())]
    columns = [*map(str, estimators), *([_OTHERS] if rows["estimator"].isna().any() else [])]
    texts: dict[tuple[str, str], str] = {}
    for row in rows.to_dict("records"):
        column = _OTHERS if row["estimator"] is None or row["estimator"] != row["estimator"] else str(row["estimator"])
        texts.setdefault((row["quantity"], column), estimate_text(row))
    lines = [
        (quantity, *(texts.get((quantity, column), "") for column in columns))
        for quantity in order
        if quantity in quantities
    ]
    note = CAUTION if any(text.startswith("~") for text in texts.values()) else ""
    return [Summary(title, ("quantity", *columns), lines, numeric=columns, optional=(_OTHERS,), note=note)]


TABLE = MeasuredTable(
    SCHEMA,
    plan=plan,
    rows=rows,
    summary=summary,
    also=(SAMPLES,),
    options=("estimator", "extra", "by", "posterior"),
    default_by="layer",
    default_bins=(5, 5),
    extras=("divergence", "semi_gradient_gap"),  # they cost further passes
)
