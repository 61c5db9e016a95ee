"""`mfdiag coefficient`: closed-form optimal coefficients, each with interval and status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mfdiag.coefficients.plane import DEGENERATE, ColumnLayout, gradient_quadratic, is_degenerate, output_quadratic
from mfdiag.coefficients.scalar import diagonal_optimum, isotropic_optimum
from mfdiag.gradients.moments import jackknife
from mfdiag.gradients.sample_pass import PassResult
from mfdiag.measures.cells import moments_by_cell, scalars_by_cell
from mfdiag.measures.plans import PlanePlan
from mfdiag.measures.rows import Rows

__all__ = ["coefficient_table"]

_ROLES = {"tangent": 1, "target": 2}


def coefficient_table(
    measured: PassResult,
    plan: PlanePlan,
    batch_sizes: Sequence[int],
    common: Mapping[str, Any],
    dim: int,
    by_layer: bool,
) -> pd.DataFrame:
    """Rows of the table `coefficient` (tables/schema.py); `dim` is the number of coordinates of a sample.

    Without a known posterior only the gradient form remains: the others need Sigma and b.
    """
    rows = Rows("coefficient", common)
    layout = plan.layout
    _gradient(rows, measured, layout, batch_sizes, by_layer)
    if plan.known and measured.output is not None:
        for box, _, moments in moments_by_cell(measured, measured.output):
            form = output_quadratic(moments, layout)
            assert form.W is not None
            for role, k in _ROLES.items():
                # theory: matrix form, beta* = tr(A Sigma J^T) / (tr(A Sigma A^T) + |A b|^2), and its twin for gamma
                estimate = jackknife(form.optimum(form.W, 1, (k,))[:, 0], moments.count)
                rows.add("optimum", estimate, box, **_keys("matrix", role), degenerate=is_degenerate(form.W, k))
            solved = form.optimum(form.W, 1, (1, 2))
            for k, role in enumerate(_ROLES):
                rows.add(
                    "optimum",
                    jackknife(solved[:, k], moments.count),
                    box,
                    **_keys("plane", role),
                    degenerate=is_degenerate(form.W, 1) or not np.isfinite(solved[0]).all(),
                )
        _isotropic_and_diagonal(rows, measured, dim)
    return rows.frame()


def _keys(form: str, role: str, layer: str = "all", n: int | None = None, kind: str | None = None) -> dict[str, Any]:
    return {"form": form, "role": role, "layer": layer, "batch_size": n, "kappa_kind": kind}


def _gradient(
    rows: Rows, measured: PassResult, layout: ColumnLayout, batch_sizes: Sequence[int], by_layer: bool
) -> None:
    for box, layer, moments in moments_by_cell(measured, measured.gradient, by_layer):
        form = gradient_quadratic(moments, layout)
        assert form.B is not None
        for role, k in _ROLES.items():
            constant = is_degenerate(form.S, k)

            def add(quantity: str, replicates: np.ndarray, n: int | None = None, **more: Any) -> None:
                estimate = jackknife(replicates, moments.count)  # noqa: B023
                estimate = estimate.inverse() if quantity == "critical_batch" else estimate
                rows.add(quantity, estimate, box, **_keys("gradient", role, layer, n), **more)  # noqa: B023

            add("optimum", form.optimum(form.S, 0, (k,))[:, 0], degenerate=constant)
            for n in batch_sizes:
                add("optimum", form.optimum(form.S, n, (k,))[:, 0], n, degenerate=constant)
            if form.W is not None:
                add("conditional_optimum", form.optimum(form.W, 0, (k,))[:, 0], degenerate=is_degenerate(form.W, k))
            with np.errstate(divide="ignore", invalid="ignore"):
                add("critical_batch", form.B[:, k, k] / form.S[:, k, k], degenerate=constant)
    if not measured.stratified:
        _held_out(rows, measured, layout)


def _held_out(rows: Rows, measured: PassResult, layout: ColumnLayout) -> None:
    """Var(0,0) / Var(fitted coefficient), fitted on every second block and evaluated on the others."""
    replicates = [half.replicates() for half in measured.gradient.halves()]
    fitted, held = (gradient_quadratic(half, layout) for half in replicates)
    for role, k in _ROLES.items():
        c = float(fitted.optimum(fitted.S, 0, (k,))[0, 0])
        point = np.zeros(3)
        point[[0, k]] = 1, c
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = held.S[:, 0, 0] / (point @ held.S @ point)
        rows.add(
            "variance_reduction",
            jackknife(gain, replicates[1].count),
            **_keys("gradient", role),
            degenerate=is_degenerate(fitted.S, k),
        )


def _isotropic_and_diagonal(rows: Rows, measured: PassResult, dim: int) -> None:
    names = ("kappa", "jacobi_fro2", "sigma2d", "bias2", "diagonal/numerator", "diagonal/denominator")
    for box, means, count in scalars_by_cell(measured, {name: measured.scalars[name] for name in names}):
        sigma2d, bias2 = means["sigma2d"], means["bias2"]
        for quantity, replicates in (("sigma2d", sigma2d), ("bias2", bias2)):
            rows.add(quantity, jackknife(replicates, count), box, **_keys("isotropic", "tangent"))
        # E|A|_F^2 = E|J|_F^2 + 2 tr J + d with A = J + I: nothing to control where A vanishes, as at r = t
        still = bool(means["jacobi_fro2"][0] + dim * (2 * means["kappa"][0] + 1) <= DEGENERATE * dim)
        kappas = {"signed": means["kappa"], "magnitude": np.sqrt(means["jacobi_fro2"] / dim)}
        for kind, kappa in kappas.items():
            keys = _keys("isotropic", "tangent", kind=kind)
            rows.add("kappa", jackknife(kappa, count), box, **keys)
            optimum = isotropic_optimum(kappa, sigma2d, bias2)
            rows.add("optimum", jackknife(optimum, count), box, **keys, degenerate=still)
        optimum = diagonal_optimum(means["diagonal/numerator"], means["diagonal/denominator"])
        rows.add("optimum", jackknife(optimum, count), box, **_keys("diagonal", "tangent"), degenerate=still)
