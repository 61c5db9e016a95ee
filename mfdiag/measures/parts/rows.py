"""Tidy rows from estimates: keys, quantity, value, interval, status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mfdiag.gradients.cells import Box
from mfdiag.gradients.intervals import Estimate
from mfdiag.tables.check import conform
from mfdiag.tables.schema import table

__all__ = ["FEW_SAMPLES", "Rows"]

FEW_SAMPLES = 64  # below, block jackknife intervals do not keep their promise


class Rows:
    """Collects estimates of one shape each and turns them into a DataFrame with `status`.

    Args:
        name: Name of the table.
        common: Values of the columns that all rows share.
    """

    def __init__(self, name: str, common: Mapping[str, Any]) -> None:
        self.name, self.common = name, dict(common)
        self.quantities = table(name).quantities
        self.parts: list[dict[str, Any]] = []

    def add(
        self,
        quantity: str,
        estimate: Estimate,
        box: Box = Box(),
        *,
        degenerate: bool = False,
        negative: np.ndarray | None = None,
        tail: str | np.ndarray | None = None,
        **keys: Any,
    ) -> None:
        """Add one row for each entry of the estimate.

        Args:
            quantity: A quantity of the table.
            estimate: Value, error and interval.
            box: The cell of (r, t).
            degenerate: Whether the coefficient's denominator is zero within its noise.
            negative: Where an estimate behind the value is negative and should not be, of the estimate's shape.
            tail: Why the tails of the samples leave no interval to trust, from `variance_tails`, for all entries or
                each; None where they do.
            keys: Values of key columns, scalars or arrays of the estimate's shape.
        """
        value, low, high = (np.atleast_1d(a) for a in (estimate.value, estimate.low, estimate.high))
        status = np.full(value.shape, "ok", dtype=object)
        kind = self.quantities[quantity].kind
        # by the interval, not by the value: the rows whose value is low are not a random subset of all
        if kind == "coefficient":
            status[(high < 0) | (low > 1)] = "outside_unit_interval"
        if kind == "nonnegative":
            # a reciprocal of something lost in noise is not inside its interval
            reciprocal = (value < 0) & ((low > value) | (high < value))
            status[(high < 0) | reciprocal | (value < 0) & np.isnan(high)] = "negative_estimate"
        undefined = "nonfinite"
        if kind == "cosine":
            status[np.isnan(estimate.std_error)] = undefined = "negative_estimate"
        if negative is not None:
            status[negative] = "negative_estimate"
        tails = np.broadcast_to(np.asarray(tail, dtype=object), value.shape)
        # an interval outside [0, 1] is not to be trusted either
        trusted = np.isin(status, ["ok", "outside_unit_interval"]) & (tails != None)  # noqa: E711 - entry by entry
        status[trusted] = tails[trusted]
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
                "ci_low": low,
                "ci_high": high,
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
        return conform(self.name, pd.DataFrame({**constant, **columns}))
