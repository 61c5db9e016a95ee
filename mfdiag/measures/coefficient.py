"""`mfdiag coefficient`: closed-form optimal coefficients, each with interval and status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mfdiag.errors import InputError
from mfdiag.measures.run.table import MeasuredTable
from mfdiag.tables.columns import BINS, LAYER, gradient_table
from mfdiag.tables.fields import Column, Quantity

if TYPE_CHECKING:
    import pandas as pd

    from mfdiag.coefficients.plane import ColumnLayout
    from mfdiag.flow.data.datasets import Data
    from mfdiag.gradients.sample_pass import PassResult
    from mfdiag.measures.parts.plane_plans import PlanePlan
    from mfdiag.measures.parts.rows import Rows
    from mfdiag.measures.parts.summary import Summary
    from mfdiag.measures.run.measurement import Measurement
    from mfdiag.measures.run.request import Request

__all__ = ["TABLE"]

_Tails = dict[tuple[str, str], str | None]
_ROLES = {"tangent": 1, "target": 2}  # role -> its coefficient's place in (1, beta, gamma)

SCHEMA = gradient_table(
    "coefficient",
    "coefficient",
    "Closed-form optimal coefficients, and the numbers they are computed from.",
    (
        Column(
            "form",
            "string",
            "isotropic: kappa/(kappa+1) sigma2d/(sigma2d + bias2); diagonal: the one beta that is best over "
            "all coordinates, each with its own J_ii, Sigma_ii, b_i; "
            "matrix: tr(A Sigma J^T) / (tr(A Sigma A^T) + |A b|^2); plane: beta and gamma together, from "
            "the residual; gradient: from the moments S and M of the gradients.",
            choices=("isotropic", "diagonal", "matrix", "plane", "gradient"),
        ),
        Column(
            "role",
            "string",
            "Which coefficient: beta (tangent) or gamma (target).",
            choices=("tangent", "target"),
        ),
        Column(
            "batch_size",
            "int64",
            "Batch n the optimum is for, in samples; null for n -> 0 or where n does not enter.",
            True,
        ),
        LAYER,
        *BINS,
        Column(
            "kappa_kind",
            "string",
            "Kappa an isotropic row uses: signed, tr(J)/d, or magnitude, |J|_F/sqrt(d); null otherwise.",
            nullable=True,
            choices=("signed", "magnitude"),
        ),
    ),
    Quantity(
        "optimum",
        "argmin_c MSE_n(c); gradient form: -(S_cc + n M_cc)^(-1) S_c0",
        "1",
        "Optimal coefficient, by total gradient variance and bias (gradient form), or by the conditional noise "
        "and bias of the residual (the others); may lie outside [0, 1].",
        kind="coefficient",
    ),
    Quantity(
        "conditional_optimum",
        "the same from conditional S",
        "1",
        "Gradient form if only the noise given (x_t, r, t) counts; needs a posterior.",
        kind="coefficient",
    ),
    Quantity(
        "critical_batch",
        "n0 = S_bb / M_bb",
        "samples",
        "Batch size at which the optimal coefficient has fallen to half its value at n -> 0.",
        kind="nonnegative",
    ),
    Quantity(
        "variance_reduction",
        "Var(0,0) / Var(optimum)",
        "1",
        "Factor by which the optimum cuts the gradient variance, on held-out samples; above 1 is better.",
    ),
    Quantity("kappa", "tr(J)/d or |J|_F/sqrt(d)", "1", "Kappa of the isotropic form; kappa_kind says which."),
    Quantity("sigma2d", "tr Sigma", "velocity²", "Conditional variance of the conditional velocity, summed."),
    Quantity("bias2", "|b|^2", "velocity²", "Mean squared norm of the proxy's bias b = vhat - v.", kind="nonnegative"),
)


def plan(measurement: Measurement) -> PlanePlan:
    """One pass over the plane; with a known posterior also the Jacobian, which the other forms need."""
    from mfdiag.measures.parts.plane_plans import PlanePlan

    weighting = measurement.request.weighting
    if weighting.p:
        raise InputError(
            f"The closed forms hold for --weighting none: under {weighting.name} the variance is not quadratic in the "
            "coefficient. Use `mfdiag sweep`, which measures every coefficient under the weight."
        )
    return PlanePlan(measurement.posterior_known, jacobian=measurement.posterior_known)


def rows(measurement: Measurement, plan: PlanePlan, result: PassResult) -> Mapping[str, pd.DataFrame]:
    """The gradient form and, with a known posterior, the forms that need Sigma and b."""
    from mfdiag.measures.parts.concentration import LIGHT, heavy_tails

    rows, request, data = measurement.rows(estimator="plane"), measurement.request, measurement.draws.data
    tails = _tails(result, data)
    _add_gradient_form(rows, result, plan.layout, request, tails)
    if not result.stratified:
        _add_held_out(rows, result, plan.layout, tails)
    if plan.posterior_known and result.output is not None:
        residuals = result.output.diagonal[:, 0, :1].numpy()
        (tail,) = heavy_tails(residuals, data, LIGHT)
        _add_output_forms(rows, result, plan.layout, tail)
        _add_isotropic_and_diagonal(rows, result, measurement.dim, tail)
    return {"coefficient": rows.frame()}


def _keys(form: str, role: str, layer: str = "all", n: int | None = None, kind: str | None = None) -> dict[str, Any]:
    return {"form": form, "role": role, "layer": layer, "batch_size": n, "kappa_kind": kind}


def _add_gradient_form(rows: Rows, result: PassResult, layout: ColumnLayout, request: Request, tails: _Tails) -> None:
    from mfdiag.coefficients.batch_optimum import batch_optimum
    from mfdiag.coefficients.plane import gradient_quadratic, is_degenerate
    from mfdiag.gradients.intervals import skewed_jackknife
    from mfdiag.measures.parts.cells import few_with_a_derivative, moments_by_cell

    few = few_with_a_derivative(result)
    # docs/theory.md#gradient-optimum and #batch-aware
    for box, layer, moments in moments_by_cell(result, result.gradient, request.by_layer):
        form = gradient_quadratic(moments, layout)
        for role, k in _ROLES.items():
            variance, bias = form.S[:, k, k], moments.squared_mean(layout.bias[k])
            constant = is_degenerate(form.S, k)
            for n in (None, *request.batch_sizes):
                if n is None:
                    optimum = skewed_jackknife(form.optimum(form.S, 0, (k,))[:, 0], moments.count)
                else:
                    optimum = batch_optimum(form.S[:, 0, k], variance, bias, n)
                keys = _keys("gradient", role, layer, n)
                rows.add("optimum", optimum, box, **keys, degenerate=constant, tail=tails["both", role])
            keys = _keys("gradient", role, layer)
            if form.W is not None:
                optimum = skewed_jackknife(form.optimum(form.W, 0, (k,))[:, 0], moments.count)
                constant_within = is_degenerate(form.W, k)
                rows.add(
                    "conditional_optimum", optimum, box, **keys, degenerate=constant_within, tail=tails["both", role]
                )
            critical = bias.estimate(denominator=variance).inverse()  # M / S has a finite variance, S / M has none
            tail = tails["control", role] or (few[box] if role == "tangent" else None)
            rows.add("critical_batch", critical, box, **keys, degenerate=constant, tail=tail)


def _tails(result: PassResult, data: Data) -> _Tails:
    """Why heavy tails leave no interval to trust, or None: of a role's control, or of `both`, e_0 and its control."""
    from mfdiag.measures.parts.concentration import heaviest_tail

    norms = result.gradient.diagonal[:, 0].numpy()
    columns = {"both": lambda k: [0, k], "control": lambda k: [k]}
    return {
        (kind, role): heaviest_tail(norms[:, of(k)], data) for kind, of in columns.items() for role, k in _ROLES.items()
    }


def _add_held_out(rows: Rows, result: PassResult, layout: ColumnLayout, tails: _Tails) -> None:
    """Var(0,0) / Var(fitted coefficient), fitted on every second block and evaluated on the others."""
    import numpy as np

    from mfdiag.coefficients.plane import gradient_quadratic, is_degenerate
    from mfdiag.gradients.intervals import ratio_jackknife

    halves = [half.replicates() for half in result.gradient.halves()]
    fitted, held_out = (gradient_quadratic(half, layout) for half in halves)
    for role, k in _ROLES.items():
        c = float(fitted.optimum(fitted.S, 0, (k,))[0, 0])
        point = np.zeros(3)
        point[[0, k]] = 1, c
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = held_out.S[:, 0, 0] / (point @ held_out.S @ point)
        estimate = ratio_jackknife(gain, halves[1].count)
        constant = is_degenerate(fitted.S, k)
        rows.add(
            "variance_reduction", estimate, **_keys("gradient", role), degenerate=constant, tail=tails["both", role]
        )


def _add_output_forms(rows: Rows, result: PassResult, layout: ColumnLayout, tail: str | None) -> None:
    """The matrix form, and the plane form over beta and gamma together, from the residual's own moments.

    `tail` says why the residual's tail leaves no interval to trust.
    """
    import numpy as np

    from mfdiag.coefficients.plane import is_degenerate, output_quadratic
    from mfdiag.gradients.intervals import skewed_jackknife
    from mfdiag.measures.parts.cells import moments_by_cell

    assert result.output is not None
    for box, _, moments in moments_by_cell(result, result.output):
        form = output_quadratic(moments, layout)
        assert form.W is not None
        for role, k in _ROLES.items():
            # docs/theory.md#matrix: beta* = tr(A Sigma J^T) / (tr(A Sigma A^T) + |A b|^2), and likewise for gamma
            estimate = skewed_jackknife(form.optimum(form.W, 1, (k,))[:, 0], moments.count)
            constant = is_degenerate(form.W, k)
            rows.add("optimum", estimate, box, **_keys("matrix", role), degenerate=constant, tail=tail)
        optima = form.optimum(form.W, 1, (1, 2))  # docs/theory.md#plane-optimum
        constant = is_degenerate(form.W, 1) or not np.isfinite(optima[0]).all()
        for k, role in enumerate(_ROLES):
            estimate = skewed_jackknife(optima[:, k], moments.count)
            rows.add("optimum", estimate, box, **_keys("plane", role), degenerate=constant, tail=tail)


def _add_isotropic_and_diagonal(rows: Rows, result: PassResult, dim: int, tail: str | None) -> None:
    import numpy as np

    from mfdiag.coefficients.plane import DEGENERATE
    from mfdiag.coefficients.scalar import diagonal_optimum, isotropic_optimum
    from mfdiag.gradients.intervals import skewed_jackknife
    from mfdiag.measures.parts.cells import scalars_by_cell

    names = ("kappa", "jacobi_fro2", "sigma2d", "bias2", "diagonal/numerator", "diagonal/denominator")
    for box, means, count in scalars_by_cell(result, {name: result.scalars[name] for name in names}):
        sigma2d, bias2 = means["sigma2d"], means["bias2"]
        for quantity, replicates in (("sigma2d", sigma2d), ("bias2", bias2)):
            estimate = skewed_jackknife(replicates, count, nonnegative=True)
            rows.add(quantity, estimate, box, **_keys("isotropic", "tangent"), tail=tail)
        # E|A|_F^2 = E|J|_F^2 + 2 tr J + d with A = J + I: nothing to control where A vanishes, as at r = t
        constant = bool(means["jacobi_fro2"][0] + dim * (2 * means["kappa"][0] + 1) <= DEGENERATE * dim)
        kappas = {"signed": means["kappa"], "magnitude": np.sqrt(means["jacobi_fro2"] / dim)}
        for kind, kappa in kappas.items():
            keys = _keys("isotropic", "tangent", kind=kind)
            rows.add("kappa", skewed_jackknife(kappa, count), box, **keys)
            optimum = isotropic_optimum(kappa, sigma2d, bias2)
            rows.add("optimum", skewed_jackknife(optimum, count), box, **keys, degenerate=constant, tail=tail)
        optimum = diagonal_optimum(means["diagonal/numerator"], means["diagonal/denominator"])
        keys = _keys("diagonal", "tangent")
        rows.add("optimum", skewed_jackknife(optimum, count), box, **keys, degenerate=constant, tail=tail)


_SHOWN = {"optimum": "β*", "variance_reduction": "variance reduction", "critical_batch": "n₀"}


def summary(title: str, rows: pd.DataFrame) -> list[Summary]:
    """A line per form and role: the optimum of a small batch and what it gains; then β* by batch size."""
    from mfdiag.measures.parts.summary import CAUTION, Summary, estimate_text

    keys = ["form", "role", "kappa_kind"]
    small = rows[rows["batch_size"].isna() & rows["quantity"].isin(list(_SHOWN))]
    lines = []
    for (form, role, kind), part in small.groupby(keys, dropna=False, sort=False):
        texts = {row["quantity"]: estimate_text(row) for row in part.to_dict("records")}
        name = str(form) if kind is None or kind != kind else f"{form}, {kind}"
        lines.append((name, str(role), *(texts.get(quantity, "") for quantity in _SHOWN)))
    by_size = rows[rows["batch_size"].notna() & (rows["role"] == "tangent") & (rows["form"] == "gradient")]
    sizes = [(f"{int(row['batch_size']):,}", estimate_text(row)) for row in by_size.to_dict("records")]
    note = CAUTION if any("~" in text for line in lines for text in line) else ""
    tables = [Summary(title, ("form", "role", *_SHOWN.values()), lines, numeric=tuple(_SHOWN.values()), note=note)]
    if sizes:
        heading = "β* of the tangent by batch size, gradient form"
        tables.append(Summary(heading, ("batch size", "β*"), sizes, numeric=("batch size", "β*"), spread=True))
    return tables


TABLE = MeasuredTable(
    SCHEMA,
    plan=plan,
    rows=rows,
    summary=summary,
    options=("batch_size", "by", "posterior"),
    default_bins=(5, 5),
    objective=(),  # the closed forms take no weight, the plane no estimator
)
