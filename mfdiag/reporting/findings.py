"""What the tables of a folder show, a sentence for each table, with the numbers and intervals it rests on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from mfdiag.figures.select import by_time, of_quantity, over_all_times, overall
from mfdiag.figures.style import share
from mfdiag.reporting.grids import grid_findings
from mfdiag.reporting.sentences import Findings, with_interval

__all__ = ["Findings", "findings"]

_SETTINGS = ["checkpoint", "step", "dataset", "proxy", "weighting", "times", "seed"]


def findings(tables: Mapping[str, pd.DataFrame]) -> list[Findings]:
    """Sentences for each model and setting in the tables (by name, tidy); none where a table lacks their rows.

    Of a grid of models, sentences for each data set instead.
    """
    if "grid" in tables:
        return grid_findings(tables["grid"])
    tables = {name: frame for name, frame in tables.items() if name in _TELL}
    keys = {name: _keys(frame) for name, frame in tables.items()}
    known = list(dict.fromkeys(key for found in keys.values() for key in found))
    fullest = {key: _fullest(key, known) for key in known}
    keys = {name: [fullest[key] for key in found] for name, found in keys.items()}
    subjects = list(dict.fromkeys(fullest.values()))
    told = [len(set(values)) > 1 for values in zip(*subjects, strict=True)]
    found = []
    for subject in subjects:
        sentences = [
            tell(tables[name][[key == subject for key in keys[name]]]) for name, tell in _TELL.items() if name in tables
        ]
        checkpoint, step, *settings = subject
        parts = [checkpoint, *([] if step is None else [f"step {step:,}"])]
        parts += [
            f"{name} {value}"
            for name, value, tell in zip(_SETTINGS[2:], settings, told[2:], strict=True)
            if tell and value is not None
        ]
        if any(sentences):
            found.append(Findings(", ".join(map(str, parts)), list(filter(None, sentences))))
    return found


def _fullest(key: tuple[Any, ...], known: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The settings with the fewest nulls that agree with `key` where it has none: sample quality needs no times."""
    agreeing = [other for other in known if all(a is None or a == b for a, b in zip(key, other, strict=True))]
    return min(agreeing, key=lambda other: other.count(None))


def _keys(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    """The settings of each row, None where null."""
    settings = frame[_SETTINGS].astype(object)
    return list(settings.where(settings.notna(), None).itertuples(index=False, name=None))


def _sweep(frame: pd.DataFrame) -> str:
    rows = overall(of_quantity(frame, "variance", "bias2", "mse"))
    rows = rows[(rows["space"] == "gradient") & (rows["gamma"] == 0)].sort_values("beta")
    variance = rows[rows["quantity"] == "variance"]
    if variance.empty:
        return ""
    first, last = variance.iloc[0], variance.iloc[-1]
    if len(variance) == 1:
        return f"The gradient of one sample has variance {with_interval(first)} at beta = {first['beta']:g}."
    text = (
        f"The gradient of one sample has variance {with_interval(first)} at beta = {first['beta']:g} and "
        f"{with_interval(last)} at beta = {last['beta']:g}, the least of {len(variance)} values of beta being at "
        f"{_argmin(variance)}"
    )
    errors = rows[rows["quantity"] == "mse"]
    if errors.empty:
        return text + "."
    least = [
        f"at {_argmin(errors[errors['batch_size'] == n])} for a batch of {n:,}"
        for n in dict.fromkeys((errors["batch_size"].min(), errors["batch_size"].max()))
    ]
    bias = rows[(rows["quantity"] == "bias2") & (rows["beta"] == last["beta"])].iloc[0]
    return (
        f"{text}; squared bias grows to {with_interval(bias)}, so that the mean squared error is least "
        f"{' and '.join(least)}."
    )


def _argmin(rows: pd.DataFrame) -> str:
    best = rows.iloc[int(rows["value"].to_numpy().argmin())]
    return f"{best['beta']:g}" if best["value"] > 0 else "a beta that is not resolved (estimate below zero)"


def _variance(frame: pd.DataFrame) -> str:
    shares = over_all_times(of_quantity(frame, "top1_share"))
    if shares.empty:
        return ""
    carried = [f"{with_interval(row, share)} ({row['estimator']})" for _, row in shares.iterrows()]
    text = f"One sample in a hundred carries {' or '.join(carried)} of the squared gradient norm"
    main = shares["estimator"].iloc[0]
    own = frame[frame["estimator"] == main]
    layers = over_all_times(of_quantity(own, "variance"))
    layers = layers[layers["layer"] != "all"]
    if not layers.empty:
        top = layers.iloc[int(layers["value"].to_numpy().argmax())]
        part = share(top["value"] / layers["value"].sum())
        text += f"; with {main}, layer {top['layer']} has {part} of the variance"
    times = by_time(of_quantity(own, "variance"), "t")
    times = times[times["status"] == "ok"]
    if not times.empty:
        top = times.iloc[int(times["value"].to_numpy().argmax())]
        text += f"; the variance is largest for t in [{top['t_low']:g}, {top['t_high']:g}], {with_interval(top)}"
    return text + "."


def _coefficient(frame: pd.DataFrame) -> str:
    rows = overall(of_quantity(frame, "optimum", "critical_batch", "variance_reduction"))
    rows = rows[(rows["form"] == "gradient") & (rows["role"] == "tangent")]
    one = {name: part.iloc[0] for name, part in rows[rows["batch_size"].isna()].groupby("quantity")}
    if "optimum" not in one:
        return ""
    text = f"For a small batch the gradient's variance is least at beta* = {with_interval(one['optimum'])}"
    if "variance_reduction" in one:
        text += f", which divides it by {with_interval(one['variance_reduction'])} on held-out samples"
    if "critical_batch" in one:
        text += f"; bias halves this optimum at a batch of {with_interval(one['critical_batch'])} samples"
    return text + "."


def _quality(frame: pd.DataFrame) -> str:
    rows = of_quantity(frame, "value", "mean_over_seeds")
    rows = rows[rows["features"].isna() & (rows["metric"] == "sliced_wasserstein")].sort_values("nfe", kind="stable")
    found = []
    for weights, part in rows.groupby("weights", dropna=False, sort=False):
        ends = part.iloc[[0, -1]].drop_duplicates("nfe")
        told = [f"{with_interval(row)} at {_steps(row['nfe'])}" for _, row in ends.iterrows()]
        found.append(" and ".join(told) + ("" if pd.isna(weights) else f" with {weights!s} weights"))
    return f"The sliced Wasserstein distance of the samples to the data is {'; '.join(found)}." if found else ""


def _steps(nfe: Any) -> str:
    return "its own steps" if pd.isna(nfe) else f"NFE {nfe}"


def _compare(frame: pd.DataFrame) -> str:
    rows = overall(of_quantity(frame, "variance_ratio", "mse_ratio"))
    rows = rows[rows["estimator"] != "meanflow"]
    ratios = rows[rows["quantity"] == "variance_ratio"]
    if ratios.empty:
        return ""
    quietest = ratios.iloc[int(ratios["value"].to_numpy().argmin())]
    text = (
        f"Of {len(ratios)} estimators, {quietest['estimator']} has the least gradient variance, "
        f"{with_interval(quietest)} of MeanFlow's"
    )
    errors = rows[(rows["quantity"] == "mse_ratio") & (rows["value"] > 0)]
    if not errors.empty:
        n = errors["batch_size"].max()
        nearest = errors[errors["batch_size"] == n]
        nearest = nearest.iloc[int(nearest["value"].to_numpy().argmin())]
        text += (
            f"; for a batch of {n:,} the mean squared error is least with {nearest['estimator']}, "
            f"{with_interval(nearest)} of MeanFlow's"
        )
    return text + "."


def _times(frame: pd.DataFrame) -> str:
    gains = {row["quantity"]: row for _, row in of_quantity(frame, "predicted_gain", "measured_gain").iterrows()}
    if len(gains) < 2:
        return ""
    predicted, measured = (with_interval(gains[f"{name}_gain"]) for name in ("predicted", "measured"))
    return (
        "Drawing (r, t) with the density of least variance and weighing the loss divides the gradient's variance by "
        f"{measured} on fresh samples; predicted was {predicted}."
    )


_TELL: dict[str, Callable[[pd.DataFrame], str]] = {
    "sweep": _sweep,
    "variance": _variance,
    "coefficient": _coefficient,
    "compare": _compare,
    "times": _times,
    "quality": _quality,
}
