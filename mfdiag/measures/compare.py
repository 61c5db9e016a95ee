"""`mfdiag compare`: every estimator on the same samples, each compared with MeanFlow, and their best mixture."""

from __future__ import annotations

from collections.abc import Mapping
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
    import pandas as pd

    from mfdiag.gradients.sample_pass import PassResult
    from mfdiag.measures.parts.compare_plan import ComparePlan
    from mfdiag.measures.parts.rows import Rows
    from mfdiag.measures.parts.summary import Summary
    from mfdiag.measures.run.measurement import Measurement

__all__ = ["TABLE"]

SCHEMA = gradient_table(
    "compare",
    "compare",
    "Every estimator on the same samples, each compared with MeanFlow, and their best linear mixture (estimator "
    "mixture). Rows of single layers are over all times, rows of time bins over the whole network.",
    (
        Column("batch_size", "int64", "Batch n of mse and of the mixture; null where n does not enter.", True),
        LAYER,
        *BINS,
    ),
    VARIANCE,
    CONDITIONAL_VARIANCE,
    Quantity("variance_ratio", "variance / variance of MeanFlow", "1", "Below 1: less noisy than MeanFlow."),
    Quantity(
        "conditional_variance_ratio",
        "conditional_variance / conditional_variance of MeanFlow",
        "1",
        "The same for the noise given (x_t, r, t); needs a posterior over the data.",
    ),
    Quantity(
        "bias2",
        "|E G - E G_MeanFlow|^2",
        GRADIENT2,
        "Squared distance of the mean gradient to MeanFlow's, which is unbiased for the regression on the "
        "marginal velocity: an unbiased estimate, which may be negative. A loss of another scale shows here too.",
        kind="nonnegative",
    ),
    Quantity(
        "cosine",
        "<E G, E G_MeanFlow> / (|E G| |E G_MeanFlow|)",
        "1",
        "Cosine between the mean gradient and MeanFlow's, from unbiased products; their noise may take it out of [-1, "
        "1].",
        kind="cosine",
    ),
    Quantity(
        "mse", "variance/n + bias2", GRADIENT2, "Mean squared error of a batch of n = batch_size.", kind="nonnegative"
    ),
    Quantity(
        "mse_ratio",
        "mse / mse of MeanFlow",
        "1",
        "Below 1: a batch of n is closer to the unbiased mean.",
        kind="nonnegative",
    ),
    Quantity(
        "cost",
        "evaluations + derivatives + 2 per backward pass",
        "forward passes",
        "Cost of a training step per sample. It follows from the method, so it has no interval.",
    ),
    Quantity(
        "mixture_weight",
        "argmin_w w (S/n + M) w, sum of w = 1",
        "1",
        "Weight of the estimator in the mixture of least mse at n, or of least variance where n is null.",
    ),
    Quantity(
        "mixture_gain",
        "mse of MeanFlow / mse of the mixture",
        "1",
        "Gain of the mixture, fitted on every second block of samples and evaluated on the others; above 1 is better. "
        "Of variances instead of errors where n is null.",
        kind="nonnegative",
    ),
)


def plan(measurement: Measurement) -> ComparePlan:
    """One group of gradients: MeanFlow, which the others are compared with, and the requested estimators."""
    from mfdiag.estimators import find_estimator
    from mfdiag.measures.parts.compare_plan import ComparePlan

    meanflow = find_estimator("meanflow")
    others = [e for e in measurement.estimators if e.name != meanflow.name]
    return ComparePlan([meanflow, *others], measurement.request.weighting, measurement.posterior_known)


def rows(measurement: Measurement, plan: ComparePlan, result: PassResult) -> Mapping[str, pd.DataFrame]:
    """Statistics of the requested estimators, by layer and by time, their cost, and the best mixture."""
    import numpy as np

    from mfdiag.gradients.intervals import Estimate, cosine_jackknife, skewed_jackknife
    from mfdiag.measures.parts.cells import few_with_a_derivative, moments_by_cell
    from mfdiag.measures.parts.method_statistics import (
        cosines,
        heaviest_mean_tails,
        heaviest_tails,
        method_statistics,
        squared_bias,
    )

    rows, request, data = measurement.rows(), measurement.request, measurement.draws.data
    names = [e.name for e in plan.estimators]
    requested = {e.name for e in measurement.estimators}
    shown = [k for k, name in enumerate(names) if name in requested]
    column: dict[str, Any] = {"estimator": np.array(names, object)[shown]}
    norms = result.gradient.diagonal[:, 0].numpy()
    every_tail = heaviest_tails(norms, plan.maps, data)
    tails = every_tail[shown]
    mean_tails = heaviest_mean_tails(norms, plan.maps, data)[shown]
    few = few_with_a_derivative(result)
    for box, layer, moments in moments_by_cell(result, result.gradient, request.by_layer):
        if layer != "all" and any(edge is not None for edge in box):
            continue  # single layers are measured over all times only
        statistics, bias = method_statistics(moments, plan.maps), squared_bias(moments, plan.maps, shown)
        for quantity, replicates in statistics.items():
            estimate = skewed_jackknife(replicates[:, shown], moments.count, nonnegative=True)
            rows.add(quantity, estimate, box, layer=layer, batch_size=None, tail=tails, **column)
        cosine = cosine_jackknife(cosines(moments, plan.maps)[:, shown], moments.count)
        bias_tails = np.array([tail or few[box] for tail in mean_tails], object)
        for quantity, estimate, tail in (("bias2", bias.estimate(), bias_tails), ("cosine", cosine, mean_tails)):
            rows.add(quantity, estimate, box, layer=layer, batch_size=None, tail=tail, **column)
        for n in request.batch_sizes:
            # docs/theory.md#mse: MSE_n = Var/n + bias2, relative to MeanFlow's, which has no bias
            noise = statistics["variance"][:, shown] / n
            error, ratio = (
                bias.estimate(added=noise, denominator=scale) for scale in (1.0, statistics["variance"][:, :1] / n)
            )
            for quantity, estimate in (("mse", error), ("mse_ratio", ratio)):
                rows.add(quantity, estimate, box, layer=layer, batch_size=n, tail=tails, **column)
    cost = np.array([e.needs.cost for e in plan.estimators], float)[shown]
    missing = np.full(len(shown), np.nan)
    rows.add("cost", Estimate(cost, missing, missing, missing, len(result.t)), layer="all", batch_size=None, **column)
    if len(names) > 1 and not result.stratified:
        _add_mixture(rows, measurement, plan, result, every_tail[0])
    return {"compare": rows.frame()}


def _add_mixture(rows: Rows, measurement: Measurement, plan: ComparePlan, result: PassResult, tail: str | None) -> None:
    """Weights of the mixture of least variance, or of least MSE_n, and its gain on the half it was not fitted on.

    `tail` says why the tail of MeanFlow, which it is compared with, leaves no interval to trust.
    """
    import numpy as np

    from mfdiag.gradients.intervals import jackknife
    from mfdiag.measures.parts.cells import moments_by_cell
    from mfdiag.measures.parts.method_statistics import best_mixture, mixture_gain

    names = np.array([e.name for e in plan.estimators], object)
    whole, halves = next(moments_by_cell(result, result.gradient))[2], result.gradient.halves()
    for n in (None, *measurement.request.batch_sizes):
        keys: dict[str, Any] = {"layer": "all", "batch_size": n}
        weights = jackknife(best_mixture(whole, plan.maps, n), whole.count)
        rows.add("mixture_weight", weights, estimator=names, tail=tail, **keys)
        rows.add("mixture_gain", mixture_gain(halves, plan.maps, n), estimator="mixture", tail=tail, **keys)


def _with_error(row: Mapping[Any, Any]) -> str:
    from mfdiag.numbers import with_error

    return with_error(row["value"], row["std_error"], 3)


def summary(title: str, rows: pd.DataFrame) -> list[Summary]:
    """A line per estimator, in the order of variance below MeanFlow; then the gain of the best mixture."""
    import pandas as pd

    from mfdiag.measures.parts.summary import Summary, plain_summary
    from mfdiag.numbers import plain

    largest = rows.loc[rows["quantity"] == "mse_ratio", "batch_size"].max()
    headings: dict[tuple[str, Any], str] = {
        ("cost", None): "cost",
        ("variance_ratio", None): "variance ratio",
        ("conditional_variance_ratio", None): "conditional",
        ("bias2", None): "bias2",
        ("cosine", None): "cosine",
        ("mse_ratio", largest): f"MSE ratio\nn={largest:,}",
    }
    with_errors = ("variance_ratio", "mse_ratio")
    cells = {
        (row["estimator"], row["quantity"], None if pd.isna(row["batch_size"]) else row["batch_size"]): row
        for row in rows.to_dict("records")
    }
    shown = {key: text for key, text in headings.items() if any(cell[1:] == key for cell in cells)}
    lines, uncertain = [], False
    names = rows.loc[rows["quantity"] == "variance", "estimator"]
    for name in sorted(names, key=lambda name: (name != "meanflow", _ratio(cells, name))):
        line = [str(name)]
        for quantity, n in shown:
            cell = cells[name, quantity, n]
            if quantity in with_errors:
                line.append(_with_error(cell))
                continue
            imprecise = bool(cell["std_error"] > abs(cell["value"]) / 2)
            uncertain = uncertain or imprecise
            line.append(("~" if imprecise else "") + plain(cell["value"], 3))
        lines.append(line)
    plain_variance = cells.get(("meanflow", "variance", None))
    notes = [] if plain_variance is None else [f"variance of meanflow: {_with_error(plain_variance)}"]
    notes += ["~ marks a standard error above half the value"] if uncertain else []
    table = Summary(
        title,
        ("estimator", *shown.values()),
        lines,
        numeric=tuple(shown.values()),
        optional=("conditional", "cosine", "bias2", "cost"),
        note="; ".join(notes),
    )
    gains = rows[rows["quantity"] == "mixture_gain"]
    mixture = "best mixture of these, on held-out samples (empty batch_size: lowest variance)"
    return [table, *(plain_summary(mixture, gains) if len(gains) else [])]


def _ratio(cells: Mapping[Any, Any], name: str) -> float:
    cell = cells.get((name, "variance_ratio", None))
    return float("inf") if cell is None else float(cell["value"])


TABLE = MeasuredTable(
    SCHEMA,
    plan=plan,
    rows=rows,
    summary=summary,
    options=("batch_size", "estimator", "by", "posterior"),
    default_estimators=("all",),
    default_by="layer",
    default_bins=(1, 5),
    measures_losses=True,
)
