"""Table `quality` from estimates, and its rows of means over training seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from mfdiag.errors import InputError
from mfdiag.gradients.intervals import Estimate
from mfdiag.quality.metrics import metrics
from mfdiag.quality.points import REPLICATES
from mfdiag.tables.check import conform

__all__ = ["mean_over_seeds", "quality_frame"]

_NONNEGATIVE = {"energy_distance", "mmd2"}  # and estimated without bias, so an estimate may be below zero
_GROUP = ["step", "dataset", "seed", "weights", "features", "nfe", "metric"]


def quality_frame(common: Mapping[str, Any], estimates: Iterable[tuple[int | None, str, Estimate]]) -> pd.DataFrame:
    """One row for each (steps, metric, estimate), with the `common` columns of a model."""
    rows = [
        {
            **common,
            "nfe": nfe,
            "metric": metric,
            "quantity": "value",
            "value": float(estimate.value),
            "std_error": float(estimate.std_error),
            "ci_low": float(estimate.low),
            "ci_high": float(estimate.high),
            "n_samples": estimate.n_samples,
        }
        for nfe, metric, estimate in estimates
    ]
    return _with_status(pd.DataFrame(rows))


def mean_over_seeds(frame: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Rows `mean_over_seeds` of models that differ in the training seed alone, one for each metric, steps and weights.

    `frame` holds the rows `value` of at least two models. The interval is Student's t over models; the variance of a
    single model's value is added, because all of them are measured on the same noise and its error is shared.
    Where intervals of metrics of all samples are longer on one side, so is that of the mean.
    Where a model's value is not finite, neither is the mean. Raises InputError for a single model.
    """
    values = frame[frame["quantity"] == "value"]
    pooled = values["metric"].isin([metric.name for metric in metrics().values() if metric.pooled])
    bias = 2 * values["value"] - values["ci_low"] - values["ci_high"]  # by how much the interval is longer below
    values = values.assign(bias=bias.where(pooled & np.isfinite(bias), 0.0))
    names = values["checkpoint"].drop_duplicates()
    if len(names) < 2:
        raise InputError(f"A mean over seeds needs at least two models, got {len(names)}; pass the rows of several.")
    grouped = values.groupby(_GROUP, dropna=False, sort=False)
    means = grouped.agg(
        value=("value", "mean"),
        spread=("value", "var"),
        shared=("std_error", lambda errors: float((errors**2).mean())),
        finite=("value", lambda models: bool(np.isfinite(models.astype(float)).all())),
        count=("value", "size"),
        bias=("bias", "mean"),
        n_samples=("n_samples", "first"),
    ).reset_index()
    # values are a_s + z for models s, where z is the error of the noise they share: Var = Var(a) / S + Var(z), two
    # estimates with S - 1 and REPLICATES - 1 degrees of freedom, combined by Welch and Satterthwaite
    own, shared, models = means["spread"] / means["count"], means["shared"], means["count"]
    means["std_error"] = np.sqrt(own + shared)
    degrees = (own + shared) ** 2 / (own**2 / (models - 1) + shared**2 / (REPLICATES - 1))
    half = (stdtrit(degrees, 0.5 + level / 2) * means["std_error"]).fillna(0)  # where nothing varies at all
    means.loc[~means["finite"], ["value", "std_error"]] = np.nan  # pandas averages the others
    means = means.assign(
        run=_braces(values["run"]),
        checkpoint=_braces(names),
        checkpoint_sha256=None,
        quantity="mean_over_seeds",
        ci_low=means["value"] - half - means["bias"].clip(lower=0),
        ci_high=means["value"] + half - means["bias"].clip(upper=0),
    )
    return _with_status(means.drop(columns=["spread", "shared", "finite", "count", "bias"]))


def _with_status(frame: pd.DataFrame) -> pd.DataFrame:
    value = frame["value"].to_numpy(dtype=float)
    below = frame["metric"].isin(_NONNEGATIVE) & (value < 0)
    # the bias of a metric of all samples makes its interval longer below: here by more than the noise
    biased = value - frame["ci_low"] > 2 * (frame["ci_high"] - value)
    status = np.select(
        [~np.isfinite(value), below, biased], ["nonfinite", "negative_estimate", "too_few_samples"], "ok"
    )
    unused = dict.fromkeys(("estimator", "proxy", "weighting", "times"))
    return conform("quality", frame.assign(**unused, status=status))


def _braces(names: Iterable[str]) -> str:
    """What names have in common, with what differs in braces: runs/seed={0,1,2}/model."""
    unique = list(dict.fromkeys(names))
    if len(unique) == 1:
        return unique[0]
    head = _common(unique)
    rest = [name[len(head) :] for name in unique]
    tail = _common([name[::-1] for name in rest])[::-1]
    return f"{head}{{{','.join(name[: len(name) - len(tail)] for name in rest)}}}{tail}"


def _common(names: Sequence[str]) -> str:
    """The longest text that all names begin with."""
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same)
