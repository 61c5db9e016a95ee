"""`mfdiag sweep`: variance, conditional variance, bias and MSE over (beta, gamma), and where the MSE is least."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from mfdiag.measures.run.table import MeasuredTable
from mfdiag.tables.columns import BINS, GRADIENT2, LAYER, gradient_table
from mfdiag.tables.fields import Column, Quantity

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from mfdiag.coefficients.plane import ColumnLayout, Quadratic
    from mfdiag.gradients.accumulate import Accumulator
    from mfdiag.gradients.cells import Box
    from mfdiag.gradients.intervals import SquaredMean
    from mfdiag.gradients.moments import Moments
    from mfdiag.gradients.sample_pass import PassResult
    from mfdiag.measures.parts.plane_plans import PlanePlan, WeightedGridPlan
    from mfdiag.measures.parts.rows import Rows
    from mfdiag.measures.parts.summary import Summary
    from mfdiag.measures.run.measurement import Measurement

__all__ = ["TABLE"]

_MOMENT = f"{GRADIENT2}; velocity² in space=output"
_PATH = (*(m * 10**k for k in range(6) for m in (1, 2, 5)), 10**6)  # n along the path, besides the requested batches

SCHEMA = gradient_table(
    "sweep",
    "sweep",
    "Variance, bias and mean squared error at each point of the plane (beta, gamma), and where the error is least.",
    (
        Column(
            "space",
            "string",
            "What is measured: the per-sample gradient, or the residual e in output space.",
            choices=("gradient", "output"),
        ),
        Column("beta", "float64", "Coefficient of the tangent: 0 is v_c, 1 is vhat; null for an optimum.", True),
        Column("gamma", "float64", "Coefficient of the target: 0 is v_c, 1 is vhat; null for an optimum.", True),
        Column("batch_size", "int64", "The n of mse and optima, in samples; 1 for the other quantities."),
        LAYER,
        *BINS,
    ),
    Quantity(
        "variance",
        "(1,c) S (1,c)^T; tr Cov e in space=output",
        _MOMENT,
        "Trace of the covariance of the per-sample gradient (space=gradient) or of the residual e (space=output).",
        kind="nonnegative",
    ),
    Quantity(
        "conditional_variance",
        "E[tr Cov(G | x_t, r, t)]; E[tr Cov(e | x_t, r, t)] in space=output",
        _MOMENT,
        "The part of variance left once (x_t, r, t) is given; needs a posterior over the data.",
        kind="nonnegative",
    ),
    Quantity(
        "bias2",
        "c M_cc c^T; E|(beta A - gamma I) b|^2 in space=output",
        _MOMENT,
        "Squared norm of the mean gradient's difference to the unbiased corner (0, 0): an unbiased estimate, "
        "which may be negative (space=gradient); or mean squared bias of the residual (space=output).",
        kind="nonnegative",
    ),
    Quantity(
        "mse",
        "variance/n + bias2; conditional_variance/n + bias2 in space=output",
        _MOMENT,
        "Mean squared error of a batch of n = batch_size samples against the unbiased mean.",
        kind="nonnegative",
    ),
    Quantity(
        "optimum_beta",
        "beta of c*_n = argmin_c MSE_n(c) = -(S_cc + n M_cc)^(-1) S_c0",
        "1",
        "Tangent coefficient of least mse, beta and gamma chosen together, for the requested batch sizes and for 1, "
        "2, 5, 10, ... to a million. In space=gradient, without weights and where some gamma is not 0. "
        "negative_estimate: within its interval, bias2 may be so negative somewhere that mse has no minimum.",
        kind="coefficient",
    ),
    Quantity(
        "optimum_gamma", "gamma of c*_n", "1", "Target coefficient of least mse, as optimum_beta.", kind="coefficient"
    ),
)


def plan(measurement: Measurement) -> PlanePlan | WeightedGridPlan:
    """The pass a sweep needs; without weights its cost does not depend on the number of coefficients."""
    from mfdiag.measures.parts.plane_plans import PlanePlan, WeightedGridPlan

    request = measurement.request
    if request.weighting.p:
        points = list(product(request.betas, request.gammas))
        return WeightedGridPlan(points, request.weighting, measurement.posterior_known)
    return PlanePlan(measurement.posterior_known, target=any(request.gammas))


def rows(
    measurement: Measurement, plan: PlanePlan | WeightedGridPlan, result: PassResult
) -> Mapping[str, pd.DataFrame]:
    """Curves over the plane in gradient and output space, and the optimum by batch size."""
    import numpy as np

    from mfdiag.coefficients.plane import gradient_quadratic, output_quadratic
    from mfdiag.gradients.intervals import skewed_jackknife
    from mfdiag.measures.parts.cells import few_with_a_derivative, moments_by_cell
    from mfdiag.measures.parts.concentration import FINITE_ERROR, FINITE_VARIANCE, heavy_tails, variance_tails
    from mfdiag.measures.parts.plane_plans import PlanePlan

    request, data = measurement.request, measurement.draws.data
    rows = measurement.rows(estimator="plane")
    points = np.array(list(product(request.betas, request.gammas)), dtype=float).T
    norms, few = _gradient_norms(plan, result, points), few_with_a_derivative(result)
    tails, mean_tails = variance_tails(norms, data), heavy_tails(norms, data, FINITE_VARIANCE)
    for box, layer, moments in moments_by_cell(result, result.gradient, request.by_layer):
        place = _Place("gradient", layer, box, points, moments.count, tails)
        if isinstance(plan, PlanePlan):
            form = gradient_quadratic(moments, plan.layout)
            curves, bias = _curves(form, moments, plan.layout, points), _bias(moments, plan.layout, points)
        else:
            curves, bias = _weighted_curves(moments, plan.posterior_known), _weighted_bias(moments)
        _add_curves(rows, place, curves)
        # without gamma, the bias is beta A b
        few_at = [few[box] if beta != 0 and gamma == 0 else None for beta, gamma in points.T]
        of_mean = [tail if point.any() else None for tail, point in zip(mean_tails, points.T, strict=True)]
        bias_tails = _either(of_mean, few_at)
        rows.add("bias2", bias.estimate(), box, **place.keys, batch_size=1, tail=bias_tails)
        unreliable = _either(tails, bias_tails)
        for n in request.batch_sizes:  # docs/theory.md#mse: MSE_n(c) = Var(c)/n + bias2(c)
            error = bias.estimate(added=curves["variance"] / n)
            rows.add("mse", error, box, **place.keys, batch_size=n, tail=unreliable)
        if isinstance(plan, PlanePlan) and plan.target:
            _add_optima(rows, place, form, request.batch_sizes)
    if result.output is not None:
        tails = variance_tails(_squared_norms(result.output, plan.layout, points), data, FINITE_ERROR)
        for box, _, moments in moments_by_cell(result, result.output):
            form = output_quadratic(moments, plan.layout)
            place = _Place("output", "all", box, points, moments.count, tails)
            curves = _curves(form, moments, plan.layout, points)
            if form.B is not None:
                curves["bias2"] = form.at(form.B, *points)
            _add_curves(rows, place, curves)
            for n in request.batch_sizes if form.B is not None else ():
                # n draws repeat at the same x_t, so that only the conditional noise is averaged
                error = curves["conditional_variance"] / n + curves["bias2"]
                estimate = skewed_jackknife(error, moments.count, nonnegative=True)
                rows.add("mse", estimate, box, **place.keys, batch_size=n, tail=tails)
    return {"sweep": rows.frame()}


class _Place(NamedTuple):
    """Where curves were measured: space, layer, cell, points [2, P], block sizes [g], what their tails forbid [P]."""

    space: str
    layer: str
    box: Box
    points: np.ndarray
    block_sizes: np.ndarray
    tails: np.ndarray

    @property
    def keys(self) -> dict[str, Any]:
        """The key columns of rows about each point."""
        return {"space": self.space, "layer": self.layer, "beta": self.points[0], "gamma": self.points[1]}


def _either(first: Iterable[str | None], second: Iterable[str | None]) -> np.ndarray:
    """The first status of each pair that is one."""
    import numpy as np

    return np.array([one or other for one, other in zip(first, second, strict=True)], dtype=object)


def _gradient_norms(plan: PlanePlan | WeightedGridPlan, result: PassResult, points: np.ndarray) -> np.ndarray:
    """Squared norms of each sample's gradient at each point, [N, P]."""
    from mfdiag.measures.parts.plane_plans import PlanePlan

    if isinstance(plan, PlanePlan):
        return _squared_norms(result.gradient, plan.layout, points)
    return result.gradient.diagonal[:, :, 0].numpy()


def _squared_norms(accumulator: Accumulator, layout: ColumnLayout, points: np.ndarray) -> np.ndarray:
    """Of each sample at each point, [N, P]."""
    import numpy as np

    assert accumulator.sample_gram is not None
    weights = _weights(points) @ layout.value
    return np.einsum("pk,nkl,pl->np", weights, accumulator.sample_gram[:, 0].numpy(), weights)


def _curves(form: Quadratic, moments: Moments, layout: ColumnLayout, points: np.ndarray) -> dict[str, np.ndarray]:
    """Quantity -> replicates [R, P]."""
    import numpy as np

    curves = {"variance": form.at(form.S, *points)}
    if layout.within is not None:
        # not from the form: at (1, 1) the weights are exactly 0, and so is the conditional variance
        weights = _weights(points) @ layout.within
        curves["conditional_variance"] = np.einsum("pk,rkl,pl->rp", weights, moments.Q[:, 0], weights)
    return curves


def _bias(moments: Moments, layout: ColumnLayout, points: np.ndarray) -> SquaredMean:
    """The squared bias at each point."""
    return moments.squared_mean(_weights(points) @ layout.bias)


def _weights(points: np.ndarray) -> np.ndarray:
    """(1, beta, gamma) of points [2, P], as rows [P, 3]."""
    import numpy as np

    return np.stack([np.ones_like(points[0]), *points], 1)


def _weighted_curves(moments: Moments, posterior_known: bool) -> dict[str, np.ndarray]:
    """The same from one group per point: (w e, w e - w_0 e_0, conditional fluctuation)."""
    curves = {"variance": moments.S[..., 0, 0]}
    if posterior_known:
        curves["conditional_variance"] = moments.Q[..., 2, 2]
    return curves


def _weighted_bias(moments: Moments) -> SquaredMean:
    """The squared bias of each group."""
    from mfdiag.gradients.intervals import SquaredMean

    return SquaredMean(
        moments.M[..., 1, 1], moments.S[0, ..., 1, 1], moments.products[..., 1, 1], moments.sizes, moments.count
    )


def _add_curves(rows: Rows, place: _Place, curves: Mapping[str, np.ndarray]) -> None:
    """Rows of nonnegative statistics whose errors are skewed."""
    from mfdiag.gradients.intervals import skewed_jackknife

    for quantity, replicates in curves.items():
        estimate = skewed_jackknife(replicates, place.block_sizes, nonnegative=True)
        rows.add(quantity, estimate, place.box, **place.keys, batch_size=1, tail=place.tails)


def _add_optima(rows: Rows, place: _Place, form: Quadratic, batch_sizes: Sequence[int]) -> None:
    import numpy as np

    from mfdiag.coefficients.plane import is_degenerate
    from mfdiag.gradients.intervals import jackknife

    # docs/theory.md#batch-aware: c*_n = -(S_cc + n M_cc)^(-1) S_c0 over beta and gamma together, along the path of n
    sizes = sorted({*batch_sizes, *_PATH})
    path = np.stack([form.optimum(form.S, n, (1, 2)) for n in sizes], axis=-1)  # [R, 2, sizes]
    constant = is_degenerate(form.S, 1) or is_degenerate(form.S, 2) or not np.isfinite(path[0]).all()
    unresolved = ~(1 + np.array(sizes) * jackknife(form.least_bias_ratio(form.S), place.block_sizes).low > 0)
    for k, quantity in enumerate(("optimum_beta", "optimum_gamma")):
        rows.add(
            quantity,
            jackknife(path[:, k], place.block_sizes),
            place.box,
            degenerate=constant,
            negative=unresolved,
            tail=next(filter(None, place.tails), None),
            space="gradient",
            layer=place.layer,
            beta=None,
            gamma=None,
            batch_size=sizes,
        )


def summary(title: str, rows: pd.DataFrame) -> list[Summary]:
    """A line per (beta, gamma): variance, bias and MSE at the largest batch."""
    from mfdiag.measures.parts.summary import Summary
    from mfdiag.numbers import with_error

    rows = rows[rows["space"] == "gradient"]
    keys = ["beta"] if rows["gamma"].nunique() == 1 else ["beta", "gamma"]
    largest = rows.loc[rows["quantity"] == "mse", "batch_size"].max()
    headings = {q: q for q in ("variance", "conditional_variance", "bias2") if (rows["quantity"] == q).any()}
    if (rows["quantity"] == "mse").any():
        headings["mse"] = f"MSE, n={largest:,}"
    shown = rows[(rows["quantity"] != "mse") | (rows["batch_size"] == largest)]
    texts = shown.assign(text=[with_error(*row) for row in zip(shown["value"], shown["std_error"], strict=True)])
    grid = texts.pivot_table(index=["beta", "gamma"], columns="quantity", values="text", aggfunc="first")
    lines = [
        (*[f"{beta:g}", f"{gamma:g}"][: len(keys)], *(line[name] for name in headings))
        for (beta, gamma), line in zip(grid.index, grid.to_dict("records"), strict=True)
    ]
    columns = (*keys, *headings.values())
    return [Summary(title, columns, lines, numeric=columns, optional=("conditional_variance",), spread=True)]


TABLE = MeasuredTable(
    SCHEMA,
    plan=plan,
    rows=rows,
    summary=summary,
    options=("beta", "gamma", "batch_size", "by", "posterior"),
    objective=("weighting",),
)
