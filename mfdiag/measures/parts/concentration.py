"""How a few samples dominate the gradient: docs/theory.md#concentration."""

from __future__ import annotations

import numpy as np
import pandas as pd

__all__ = ["largest_samples", "tail_index", "top_share"]

_TOP = 0.01  # "the largest 1 % of samples"
_TAIL = 0.05  # Hill's estimator over the largest 5 %: enough order statistics for its error, few enough to be the tail


def top_share(norms: np.ndarray) -> float:
    """Share of the total that the largest 1 % of values [N] carry (a fractional sample counts in part)."""
    ordered, count = np.sort(norms)[::-1], _TOP * len(norms)
    whole = int(count)
    part = ordered[:whole].sum() + (count - whole) * ordered[whole]
    return float(part / ordered.sum())


def tail_index(norms: np.ndarray) -> float:
    """Hill's estimator of the tail index over the largest 5 % of values [N]; at 2 or below, no finite variance."""
    k = max(2, int(_TAIL * len(norms)))
    top = np.sort(norms)[-k - 1 :]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(top[1:] / top[0])
        return float(len(logs) / logs.sum())


def largest_samples(samples: pd.DataFrame, count: int = 5) -> pd.DataFrame:
    """The `count` rows of largest |G|^2 for each model and estimator, from the table `samples`.

    A column `share` says what part of the sum over all samples each is.
    """
    norms = samples[samples["quantity"] == "grad_norm2"]
    groups = norms.groupby(["checkpoint", "step", "dataset", "proxy", "times", "estimator"], dropna=False, sort=False)
    share = norms["value"] / groups["value"].transform("sum")
    largest = groups["value"].rank(ascending=False, method="first") <= count
    order = groups.ngroup()[largest].to_frame("group").assign(value=-norms["value"]).sort_values(["group", "value"])
    return norms.assign(share=share).loc[order.index]
