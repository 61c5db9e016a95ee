"""Tidy rows from estimates: keys, quantity, value, interval, status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mfdiag.gradients.cells import Box
from mfdiag.gradients.moments import Estimate
from mfdiag.tables.check import conform

__all__ = ["FEW_SAMPLES", "Rows"]

FEW_SAMPLES = 64
_NONNEGATIVE = {
    "variance",
    "conditional_variance",
    "bias2",
    "mse",
    "mse_ratio",
    "mixture_gain",
    "mean_norm2",
    "noise_scale",
    "snr",
    "critical_batch",
    "loss_variance",
    "semi_gradient_gap",
    "semi_gradient_gap_field",
    "semi_gradient_gap_noise",
    "semi_gradient_gap_ratio",
}
_COEFFICIENTS = {"optimum", "conditional_optimum", "optimum_beta", "optimum_gamma"}
# over roots of squared norms: no interval where a replicate is negative
_COSINES = {"conflict_cosine", "cosine", "semi_gradient_gap_cosine"}


class Rows:
    """Collects estimates of one shape each and turns them into a DataFrame with `status`."""

    def __init__(self, table: str, common: Mapping[str, Any]) -> None:
        self.table, self.common = table, dict(common)
        self.parts: list[dict[str, Any]] = []

    def add(
        self,
        quantity: str,
        estimate: Estimate,
        box: Box = Box(),
        *,
        degenerate: bool = False,
        negative: np.ndarray | None = None,
        **keys: Any,
    ) -> None:
        """One row for each entry of the estimate; `keys` are scalars or arrays of its shape.

        `negative`, of that shape too, says where an estimate behind the value is negative and should not be.
        """
        value = np.atleast_1d(estimate.value)
        status = np.full(value.shape, "ok", dtype=object)
        if quantity in _COEFFICIENTS:
            status[(value < 0) | (value > 1)] = "outside_unit_interval"
        if quantity in _NONNEGATIVE:
            status[value < 0] = "negative_estimate"
        undefined = "nonfinite"
        if quantity in _COSINES:
            status[np.isnan(estimate.std_error)] = undefined = "negative_estimate"
        if negative is not None:
            status[negative] = "negative_estimate"
        if estimate.n_samples < FEW_SAMPLES:
            status[:] = "too_few_samples"
        if degenerate:
            status[:] = "degenerate_control"
        status[~np.isfinite(value)] = "degenerate_control" if degenerate else undefined
        self.parts.append(
            {
                **box._asdict(),
                **keys,
                "quantity": quantity,
                "value": value,
                "std_error": np.atleast_1d(estimate.std_error),
                "ci_low": np.atleast_1d(estimate.low),
                "ci_high": np.atleast_1d(estimate.high),
                "n_samples": estimate.n_samples,
                "status": status,
            }
        )

    def frame(self) -> pd.DataFrame:
        """All rows in the order added, with the columns and dtypes of the table's schema."""
        names = list(dict.fromkeys(name for part in self.parts for name in part))
        columns: dict[str, Any] = {}
        for name in names:
            pieces = [np.broadcast_to(np.asarray(p.get(name), dtype=object), p["value"].shape) for p in self.parts]
            columns[name] = np.concatenate(pieces)
        rows = len(columns["value"])
        constant = {name: [value] * rows for name, value in self.common.items() if name not in columns}
        return conform(self.table, pd.DataFrame({**constant, **columns}))
