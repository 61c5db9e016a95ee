"""Table `grid`: how models depend on the coefficient they were trained with, and how well that was predicted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from mfdiag.quality.metrics import metrics
from mfdiag.tables.check import conform
from mfdiag.tables.selection import overall

__all__ = ["TRAINING", "grid_table"]

TRAINING = "training"  # the table that says which model was trained with which coefficient
_LEVEL = 0.95
_KEYS = ("beta", "metric", "nfe", "weights", "batch_size")
_QUALITY_KEYS = ("metric", "nfe", "weights")
_ALL = "all"  # data set of the rows over all of them


def grid_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Table `grid` from `training` and, if present, `sweep`, `coefficient` and `quality`; may be empty.

    Models are matched by the hash of their checkpoint. Models that differ only in the training seed are averaged, with
    Student's t over seeds; comparisons between coefficients are paired by seed.
    """
    training = tables[TRAINING]
    models = _models(training)
    parts = [
        *_variances(models, tables.get("sweep")),
        *_qualities(models, tables.get("quality")),
        *_optima(models, tables.get("coefficient")),
    ]
    parts = [part for part in parts if len(part)]
    if not parts:
        return pd.DataFrame()
    frame = pd.concat(parts, ignore_index=True)
    frame = pd.concat([frame, _prediction_errors(frame)], ignore_index=True)
    order = [*dict.fromkeys(training["dataset"]), _ALL]
    frame = frame.sort_values("dataset", key=lambda names: names.map(order.index), kind="stable")
    first = training.iloc[0]
    shared = {"run": first["run"], "checkpoint": first["run"], "times": first["times"], "seed": 0}
    unused = dict.fromkeys(("checkpoint_sha256", "estimator", "proxy", "step", "weighting"))
    absent = dict.fromkeys(column for column in _KEYS if column not in frame)  # keys of tables that are not present
    frame = frame.assign(**shared, **unused, **absent)
    outside = (frame["quantity"] == "optimum") & ~frame["value"].between(0, 1)
    finite = np.isfinite(frame["value"].astype(float))
    return conform(
        "grid", frame.assign(status=np.select([~finite, outside], ["nonfinite", "outside_unit_interval"], "ok"))
    )


def _models(training: pd.DataFrame) -> pd.DataFrame:
    """One row for each finished model: its hash, and what it was trained with."""
    on_the_plane = training.reindex(columns=["estimator"])["estimator"].isna()  # other methods have no beta
    finished = training[(training["quantity"] == "steps") & training["checkpoint_sha256"].notna() & on_the_plane]
    columns = ["checkpoint_sha256", "dataset", "beta", "gamma", "anchor", "seed"]
    return finished[columns].rename(columns={"seed": "trained_seed", "beta": "trained_beta"})


def _with_models(models: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with what their models were trained with."""
    return rows.drop(columns=["dataset", "gamma", "seed"], errors="ignore").merge(models, on="checkpoint_sha256")


def _variances(models: pd.DataFrame, sweep: pd.DataFrame | None) -> Iterator[pd.DataFrame]:
    """Gradient variance of each model at its own coefficients, and of the models of beta = 0 at every other."""
    if sweep is None:
        return
    rows = overall(sweep)
    rows = rows[(rows["quantity"] == "variance") & (rows["space"] == "gradient")]
    rows = rows[rows["gamma"] == 0]
    variances = _with_models(models, rows)
    at_own_beta = variances[np.isclose(variances["beta"], variances["trained_beta"])].drop(columns="beta")
    at_own_beta = at_own_beta.rename(columns={"trained_beta": "beta"})
    yield _means(at_own_beta, "variance")
    yield _ratios(at_own_beta, "variance_ratio", inverted=True)
    yield _means(variances[variances["trained_beta"] == 0], "variance_at_0")


def _qualities(models: pd.DataFrame, quality: pd.DataFrame | None) -> Iterator[pd.DataFrame]:
    """Sample quality at each trained beta, its ratio to that at 0, and the beta with the lowest distance to the data.

    Distances between a model's own samples order no betas: a model that maps all noise to one point has the lowest.
    """
    if quality is None:
        return
    values = quality[(quality["quantity"] == "value") & quality["features"].isna()]
    qualities = _with_models(models, values).rename(columns={"trained_beta": "beta"})
    yield _means(qualities, "quality", _QUALITY_KEYS)
    yield _ratios(qualities, "quality_ratio", _QUALITY_KEYS)
    distances = [name for name, metric in metrics().items() if metric.best == 0 and metric.stepwise is None]
    lower_is_better = qualities[qualities["metric"].isin(distances)]
    rows = [
        {"dataset": dataset, **dict(zip(_QUALITY_KEYS, keys, strict=True)), **_best_beta(part)}
        for (dataset, *keys), part in lower_is_better.groupby(["dataset", *_QUALITY_KEYS], sort=False)
    ]
    yield pd.DataFrame(rows)


def _optima(models: pd.DataFrame, coefficient: pd.DataFrame | None) -> Iterator[pd.DataFrame]:
    """The batch-aware optimum of the models trained at beta = 0: what is known before the others are trained."""
    if coefficient is None:
        return
    rows = overall(coefficient)
    rows = rows[(rows["quantity"] == "optimum") & (rows["form"] == "gradient") & (rows["role"] == "tangent")]
    optima = _with_models(models, rows[rows["batch_size"].notna()])
    yield _means(optima[optima["trained_beta"] == 0].drop(columns="trained_beta"), "optimum", ("batch_size",))


def _means(values: pd.DataFrame, quantity: str, keys: Sequence[str] = ()) -> pd.DataFrame:
    """Mean over seeds for each data set, beta and `keys`."""
    groups = ["dataset", *(["beta"] if "beta" in values else []), *keys]
    rows = [
        {**dict(zip(groups, group, strict=True)), "quantity": quantity, **_student(part["value"].to_numpy(float))}
        for group, part in values.groupby(groups, sort=False)
    ]
    return pd.DataFrame(rows)


def _ratios(values: pd.DataFrame, quantity: str, keys: Sequence[str] = (), *, inverted: bool = False) -> pd.DataFrame:
    """Each beta to beta = 0 (or the inverse), paired by seed, as geometric means over seeds.

    Rows of data set `all` are geometric means over data sets, with the interval over them.
    """
    rows: list[dict[str, Any]] = []
    log_means: dict[tuple[Any, ...], list[float]] = {}  # (beta, *group) -> a mean for each data set
    for (dataset, *group), part in values.groupby(["dataset", *keys], sort=False):
        by_seed = part.pivot_table(index="trained_seed", columns="beta", values="value")
        for beta in [beta for beta in by_seed.columns if beta != 0] if 0 in by_seed.columns else []:
            logs = (np.log(by_seed[beta]) - np.log(by_seed[0])).dropna().to_numpy() * (-1 if inverted else 1)
            log_means.setdefault((beta, *group), []).append(float(logs.mean()))
            key_values = dict(zip(keys, group, strict=True))
            rows.append({"dataset": dataset, **key_values, "beta": beta, "quantity": quantity, **_geometric(logs)})
    for (beta, *group), means in log_means.items():
        if len(means) > 1:
            key_values = dict(zip(keys, group, strict=True))
            pooled = _geometric(np.array(means))
            rows.append({"dataset": _ALL, **key_values, "beta": beta, "quantity": quantity, **pooled})
    return pd.DataFrame(rows)


def _geometric(logs: np.ndarray) -> dict[str, Any]:
    """`_student` of logarithms, exponentiated; the standard error is the logarithm's times the value."""
    of_logs = _student(logs)
    value, low, high = (float(np.exp(of_logs[key])) for key in ("value", "ci_low", "ci_high"))
    return {**of_logs, "value": value, "std_error": of_logs["std_error"] * value, "ci_low": low, "ci_high": high}


def _best_beta(part: pd.DataFrame) -> dict[str, Any]:
    """The beta of lowest mean, and the range of those that do not differ from it by a paired t test over seeds."""
    by_seed = part.pivot_table(index="trained_seed", columns="beta", values="value")
    best = by_seed.mean().idxmin()
    equivalent = []
    for beta in by_seed.columns:
        excess = (by_seed[beta] - by_seed[best]).dropna().to_numpy()
        worse = beta != best and _student(excess)["ci_low"] > 0
        if not worse:
            equivalent.append(beta)
    return {
        "quantity": "best_beta",
        "value": best,
        "ci_low": min(equivalent),
        "ci_high": max(equivalent),
        "n_samples": len(by_seed),
    }


def _prediction_errors(frame: pd.DataFrame) -> pd.DataFrame:
    """|beta*_n - best beta|, with beta*_n moved into the range of trained betas, and its mean over data sets."""
    best = frame[frame["quantity"] == "best_beta"]
    optima = frame[frame["quantity"] == "optimum"]
    if best.empty or optima.empty:
        return pd.DataFrame()
    betas = frame.loc[frame["quantity"] == "quality", "beta"]
    both = best.merge(optima, on="dataset", suffixes=("", "_predicted"))
    both["value"] = (both["value_predicted"].clip(betas.min(), betas.max()) - both["value"]).abs()
    both["batch_size"] = both["batch_size_predicted"]
    keys = [*_QUALITY_KEYS, "batch_size"]
    by_dataset = both[["dataset", *keys, "value", "n_samples"]].assign(quantity="prediction_error")
    over_datasets = [
        {**dict(zip(keys, group, strict=True)), "dataset": _ALL, "quantity": "prediction_error", **_student(errors)}
        for group, part in by_dataset.groupby(keys, sort=False)
        if len(errors := part["value"].to_numpy(float)) > 1
    ]
    return pd.concat([by_dataset, pd.DataFrame(over_datasets)], ignore_index=True)


def _student(values: np.ndarray) -> dict[str, Any]:
    """Mean of independent values with Student's t interval; no interval for a single value."""
    count = len(values)
    error = float(values.std(ddof=1)) / np.sqrt(count) if count > 1 else np.nan
    half = stdtrit(count - 1, 0.5 + _LEVEL / 2) * error if count > 1 else np.nan
    mean = float(values.mean())
    return {"value": mean, "std_error": error, "ci_low": mean - half, "ci_high": mean + half, "n_samples": count}
