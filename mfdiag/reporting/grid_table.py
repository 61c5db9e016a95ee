"""What a grid of models shows about the coefficient it was trained with: means over training seeds, and predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from mfdiag.figures.select import overall
from mfdiag.quality.metrics import metrics
from mfdiag.tables.check import conform

__all__ = ["NEEDED", "grid_table"]

NEEDED = "training"  # the table that says which model was trained with which coefficient
_LEVEL = 0.95
_KEYS = ("beta", "metric", "nfe", "weights", "batch_size")
_QUALITY = ["metric", "nfe", "weights"]


def grid_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Table `grid` from `training` and whichever of `sweep`, `coefficient` and `quality` are there; may be empty.

    Models are told apart by the hash of their checkpoint. Models that differ in the training seed alone are averaged,
    with Student's t over seeds; comparisons between coefficients are paired by seed.
    """
    models = _models(tables[NEEDED])
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
    order = [*dict.fromkeys(tables[NEEDED]["dataset"]), "all"]
    frame = frame.sort_values("dataset", key=lambda names: names.map(order.index), kind="stable")
    first = tables[NEEDED].iloc[0]
    shared = {"run": first["run"], "checkpoint": first["run"], "times": first["times"], "seed": 0}
    unused = dict.fromkeys(("checkpoint_sha256", "estimator", "proxy", "step", "weighting"))
    missing = dict.fromkeys(column for column in _KEYS if column not in frame)  # where a table was not there
    frame = frame.assign(**shared, **unused, **missing)
    outside = (frame["quantity"] == "optimum") & ~frame["value"].between(0, 1)
    finite = np.isfinite(frame["value"].astype(float))
    return conform(
        "grid", frame.assign(status=np.select([~finite, outside], ["nonfinite", "outside_unit_interval"], "ok"))
    )


def _models(training: pd.DataFrame) -> pd.DataFrame:
    """One row for each finished model: its hash, and what it was trained with."""
    last = training[(training["quantity"] == "steps") & training["checkpoint_sha256"].notna()]
    kept = ["checkpoint_sha256", "dataset", "beta", "gamma", "anchor", "seed"]
    return last[kept].rename(columns={"seed": "trained_seed", "beta": "trained_beta"})


def _joined(models: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns=["dataset", "gamma", "seed"], errors="ignore").merge(models, on="checkpoint_sha256")


def _variances(models: pd.DataFrame, sweep: pd.DataFrame | None) -> Iterator[pd.DataFrame]:
    """Gradient variance of each model at its own coefficients, and of the models of beta = 0 at every other."""
    if sweep is None:
        return
    rows = overall(sweep)
    rows = rows[(rows["quantity"] == "variance") & (rows["space"] == "gradient")]
    rows = rows[rows["gamma"] == 0]
    found = _joined(models, rows)
    own = found[np.isclose(found["beta"], found["trained_beta"])].drop(columns="beta")
    own = own.rename(columns={"trained_beta": "beta"})
    yield _means(own, "variance")
    yield _ratios(own, "variance_ratio", inverted=True)
    yield _means(found[found["trained_beta"] == 0], "variance_at_0")


def _qualities(models: pd.DataFrame, quality: pd.DataFrame | None) -> Iterator[pd.DataFrame]:
    if quality is None:
        return
    values = quality[(quality["quantity"] == "value") & quality["features"].isna()]
    found = _joined(models, values).rename(columns={"trained_beta": "beta"})
    yield _means(found, "quality", _QUALITY)
    yield _ratios(found, "quality_ratio", _QUALITY)
    distances = [name for name, metric in metrics().items() if metric.best == 0]
    lower = found[found["metric"].isin(distances)]
    rows = [
        {"dataset": name, **dict(zip(_QUALITY, keys, strict=True)), **_best(part)}
        for (name, *keys), part in lower.groupby(["dataset", *_QUALITY], sort=False)
    ]
    yield pd.DataFrame(rows)


def _optima(models: pd.DataFrame, coefficient: pd.DataFrame | None) -> Iterator[pd.DataFrame]:
    """The batch-aware optimum of the models trained at beta = 0: what could be known before the others are trained."""
    if coefficient is None:
        return
    rows = overall(coefficient)
    rows = rows[(rows["quantity"] == "optimum") & (rows["form"] == "gradient") & (rows["role"] == "tangent")]
    found = _joined(models, rows[rows["batch_size"].notna()])
    yield _means(found[found["trained_beta"] == 0].drop(columns="trained_beta"), "optimum", ["batch_size"])


def _means(found: pd.DataFrame, quantity: str, keys: list[str] | None = None) -> pd.DataFrame:
    """Mean over seeds for each data set, beta and `keys`."""
    by = ["dataset", *(["beta"] if "beta" in found else []), *(keys or [])]
    rows = [
        {**dict(zip(by, names, strict=True)), "quantity": quantity, **_student(part["value"].to_numpy(float))}
        for names, part in found.groupby(by, sort=False)
    ]
    return pd.DataFrame(rows)


def _ratios(
    found: pd.DataFrame, quantity: str, keys: list[str] | None = None, *, inverted: bool = False
) -> pd.DataFrame:
    """Each beta against beta = 0 (or the other way round), paired by seed, as geometric means over seeds.

    Rows of data set `all` are geometric means over data sets, with the interval over them.
    """
    rows: list[dict[str, Any]] = []
    pooled: dict[tuple[Any, ...], list[float]] = {}
    for (dataset, *names), part in found.groupby(["dataset", *(keys or [])], sort=False):
        table = part.pivot_table(index="trained_seed", columns="beta", values="value")
        for beta in [beta for beta in table.columns if beta != 0] if 0 in table.columns else []:
            logs = (np.log(table[beta]) - np.log(table[0])).dropna().to_numpy() * (-1 if inverted else 1)
            pooled.setdefault((beta, *names), []).append(float(logs.mean()))
            where = dict(zip(keys or [], names, strict=True))
            rows.append({"dataset": dataset, **where, "beta": beta, "quantity": quantity, **_geometric(logs)})
    for (beta, *names), means in pooled.items():
        if len(means) > 1:
            where = dict(zip(keys or [], names, strict=True))
            rows.append({"dataset": "all", **where, "beta": beta, "quantity": quantity, **_geometric(np.array(means))})
    return pd.DataFrame(rows)


def _geometric(logs: np.ndarray) -> dict[str, Any]:
    """`_student` of logarithms, taken back; the standard error stays that of the logarithm times the value."""
    told = _student(logs)
    value, low, high = (float(np.exp(told[key])) for key in ("value", "ci_low", "ci_high"))
    return {**told, "value": value, "std_error": told["std_error"] * value, "ci_low": low, "ci_high": high}


def _best(part: pd.DataFrame) -> dict[str, Any]:
    """The beta of least mean, and the range of those that a paired t test over seeds does not tell from it."""
    table = part.pivot_table(index="trained_seed", columns="beta", values="value")
    best = table.mean().idxmin()
    level = []
    for beta in table.columns:
        excess = (table[beta] - table[best]).dropna().to_numpy()
        worse = beta != best and _student(excess)["ci_low"] > 0
        if not worse:
            level.append(beta)
    return {
        "quantity": "best_beta",
        "value": best,
        "ci_low": min(level),
        "ci_high": max(level),
        "n_samples": len(table),
    }


def _prediction_errors(frame: pd.DataFrame) -> pd.DataFrame:
    """|beta*_n - best beta|, with beta*_n moved to the nearest beta that was trained, and its mean over data sets."""
    best = frame[frame["quantity"] == "best_beta"]
    optima = frame[frame["quantity"] == "optimum"]
    if best.empty or optima.empty:
        return pd.DataFrame()
    betas = frame.loc[frame["quantity"] == "quality", "beta"]
    both = best.merge(optima, on="dataset", suffixes=("", "_predicted"))
    both["value"] = (both["value_predicted"].clip(betas.min(), betas.max()) - both["value"]).abs()
    both["batch_size"] = both["batch_size_predicted"]
    keys = [*_QUALITY, "batch_size"]
    single = both[["dataset", *keys, "value", "n_samples"]].assign(quantity="prediction_error")
    rows = [
        {**dict(zip(keys, names, strict=True)), "dataset": "all", "quantity": "prediction_error", **_student(v)}
        for names, part in single.groupby(keys, sort=False)
        if len(v := part["value"].to_numpy(float)) > 1
    ]
    return pd.concat([single, pd.DataFrame(rows)], ignore_index=True)


def _student(values: np.ndarray) -> dict[str, Any]:
    """Mean of independent values with Student's t interval; none for a single value."""
    count = len(values)
    error = float(values.std(ddof=1)) / np.sqrt(count) if count > 1 else np.nan
    half = stdtrit(count - 1, 0.5 + _LEVEL / 2) * error if count > 1 else np.nan
    mean = float(values.mean())
    return {"value": mean, "std_error": error, "ci_low": mean - half, "ci_high": mean + half, "n_samples": count}
