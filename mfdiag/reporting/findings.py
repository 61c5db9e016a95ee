"""What the tables of a folder show: sentences for each table, with the numbers and intervals they rest on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from mfdiag.numbers import percent
from mfdiag.reporting.grids import grid_findings
from mfdiag.reporting.sentences import Findings, change, is_measurable, not_measurable, number
from mfdiag.tables.selection import by_time, of_quantity, over_all_times, overall

__all__ = ["Findings", "findings"]

_SETTINGS = ["checkpoint", "step", "dataset", "proxy", "weighting", "times", "seed"]
_Setting = tuple[Any, ...]  # a value for each of _SETTINGS, None where null


def findings(tables: Mapping[str, pd.DataFrame]) -> list[Findings]:
    """Sentences for each model and setting in the tables (tidy, by name); none where a table lacks their rows.

    For a grid of models, sentences for each data set instead.
    """
    if "grid" in tables:
        return grid_findings(tables["grid"])
    tables = {name: frame for name, frame in tables.items() if name in _SENTENCES}
    settings = {name: _settings_of(frame) for name, frame in tables.items()}
    distinct = list(dict.fromkeys(setting for of_table in settings.values() for setting in of_table))
    completed = {setting: _completed(setting, distinct) for setting in distinct}
    settings = {name: [completed[setting] for setting in of_table] for name, of_table in settings.items()}
    subjects = list(dict.fromkeys(completed.values()))
    differs = [len(set(values)) > 1 for values in zip(*subjects, strict=True)]
    statements = []
    for subject in subjects:
        sentences = [
            write(tables[name][[setting == subject for setting in settings[name]]])
            for name, write in _SENTENCES.items()
            if name in tables
        ]
        if any(sentences):
            statements.append(Findings(_subject(subject, differs), list(filter(None, sentences))))
    return statements


def _settings_of(frame: pd.DataFrame) -> list[_Setting]:
    """The setting of each row."""
    settings = frame[_SETTINGS].astype(object)
    return list(settings.where(settings.notna(), None).itertuples(index=False, name=None))


def _completed(setting: _Setting, known: Sequence[_Setting]) -> _Setting:
    """The setting with the fewest nulls that agrees with `setting` where that has a value.

    Sample quality, for one, has no times; its sentence belongs to the model's other tables.
    """
    agreeing = [other for other in known if all(a is None or a == b for a, b in zip(setting, other, strict=True))]
    return min(agreeing, key=lambda other: other.count(None))


def _subject(setting: _Setting, differs: Sequence[bool]) -> str:
    """Checkpoint and step, and those other settings that differ between subjects."""
    checkpoint, step, *others = setting
    parts = [str(checkpoint), *([] if step is None else [f"step {step:,}"])]
    parts += [
        f"{name} {value}"
        for name, value, named in zip(_SETTINGS[2:], others, differs[2:], strict=True)
        if named and value is not None
    ]
    return ", ".join(parts)


def _lowest(rows: pd.DataFrame) -> pd.Series:
    return rows.iloc[int(rows["value"].to_numpy().argmin())]


def _largest(rows: pd.DataFrame) -> pd.Series:
    return rows.iloc[int(rows["value"].to_numpy().argmax())]


def _sweep(frame: pd.DataFrame) -> str:
    rows = overall(of_quantity(frame, "variance", "bias2", "mse"))
    rows = rows[(rows["space"] == "gradient") & (rows["gamma"] == 0)].sort_values("beta")
    variance = rows[rows["quantity"] == "variance"]
    if variance.empty:
        return ""
    first, last = variance.iloc[0], variance.iloc[-1]
    text = f"The gradient variance of one sample is {number(first)} at beta = {first['beta']:g}"
    if len(variance) == 1:
        return f"{text}."
    text += (
        f" and {number(last)} at beta = {last['beta']:g}; of {len(variance)} values of beta, it is lowest at "
        f"{_lowest(variance)['beta']:g}."
    )
    errors = rows[rows["quantity"] == "mse"]
    if errors.empty:
        return text
    bias = rows[(rows["quantity"] == "bias2") & (rows["beta"] == last["beta"])].iloc[0]
    size = number(bias) if is_measurable(bias, 0) else not_measurable(bias)
    sizes = dict.fromkeys((errors["batch_size"].min(), errors["batch_size"].max()))
    places = [_where_lowest(errors[errors["batch_size"] == n]) for n in sizes]
    minima = " and ".join(f"{place} for a batch of {n:,}" for place, n in zip(places, sizes, strict=True))
    if len(sizes) > 1 and len(set(places)) == 1:
        minima = f"{places[0]} for batches of {' and '.join(f'{n:,}' for n in sizes)}"
    return f"{text} The squared bias at beta = {last['beta']:g} is {size}. The mean squared error is lowest {minima}."


def _where_lowest(errors: pd.DataFrame) -> str:
    lowest = _lowest(errors)
    return f"at beta = {lowest['beta']:g}" if lowest["value"] > 0 else f"at a beta {not_measurable(lowest)}"


def _variance(frame: pd.DataFrame) -> str:
    shares = over_all_times(of_quantity(frame, "top1_share"))
    if shares.empty:
        return ""
    first, *others = (number(row, percent) for _, row in shares.iterrows())
    main, *methods = shares["estimator"]
    carried = [f"{first} of the squared gradient norm with {main}"]
    carried += [f"{share} with {method}" for share, method in zip(others, methods, strict=True)]
    text = f"The largest 1 % of samples carry {' and '.join(carried)}."
    rows = frame[frame["estimator"] == main]
    places = []
    layers = over_all_times(of_quantity(rows, "variance"))
    layers = layers[layers["layer"] != "all"]
    if not layers.empty:
        layer = _largest(layers)
        places.append(f"layer {layer['layer']} has {percent(layer['value'] / layers['value'].sum())} of the variance")
    bins = by_time(of_quantity(rows, "variance"), "t")
    bins = bins[bins["status"] == "ok"]
    if not bins.empty and is_measurable(top := _largest(bins)):
        places.append(f"the variance is largest for t in [{top['t_low']:g}, {top['t_high']:g}]: {number(top)}")
    return f"{text} With {main}, {', and '.join(places)}." if places else text


def _coefficient(frame: pd.DataFrame) -> str:
    rows = overall(of_quantity(frame, "optimum", "critical_batch", "variance_reduction"))
    rows = rows[(rows["form"] == "gradient") & (rows["role"] == "tangent")]
    first = {name: part.iloc[0] for name, part in rows[rows["batch_size"].isna()].groupby("quantity")}
    optimum, reduction, critical = (first.get(name) for name in ("optimum", "variance_reduction", "critical_batch"))
    if optimum is None:
        return ""
    if not is_measurable(optimum, 0):
        return f"The beta of the lowest gradient variance is {not_measurable(optimum)}."
    sentences = [f"For a small batch, the gradient variance is lowest at beta* = {number(optimum)}."]
    if reduction is not None:
        sentences.append(
            f"Using beta* {change(reduction, 'the variance')} on held-out samples."
            if is_measurable(reduction, 1)
            else f"The effect of beta* on the variance is {not_measurable(reduction)}."
        )
    if critical is not None:
        sentences.append(
            f"Above {number(critical)} samples per batch, use half this beta."
            if is_measurable(critical) and critical["value"] > 0
            else f"The batch size from which bias halves beta* is {not_measurable(critical)}."
        )
    return " ".join(sentences)


def _quality(frame: pd.DataFrame) -> str:
    rows = of_quantity(frame, "value", "mean_over_seeds")
    rows = rows[rows["features"].isna() & (rows["metric"] == "sliced_wasserstein")].sort_values("nfe", kind="stable")
    distances = []
    for weights, part in rows.groupby("weights", dropna=False, sort=False):
        ends = part.iloc[[0, -1]].drop_duplicates("nfe")
        at_steps = [f"{number(row)} {_at_steps(row['nfe'])}" for _, row in ends.iterrows()]
        distances.append(" and ".join(at_steps) + ("" if pd.isna(weights) else f" with {weights!s} weights"))
    if not distances:
        return ""
    return f"The sliced Wasserstein distance between samples and data is {'; '.join(distances)}."


def _at_steps(nfe: Any) -> str:
    return "with the sampler's own steps" if pd.isna(nfe) else f"at NFE {nfe}"


def _compare(frame: pd.DataFrame) -> str:
    rows = overall(of_quantity(frame, "variance_ratio", "mse_ratio"))
    rows = rows[rows["estimator"] != "meanflow"]
    variances = rows[rows["quantity"] == "variance_ratio"]
    if variances.empty:
        return ""
    count = f"{len(variances)} other estimator{'' if len(variances) == 1 else 's'}"
    sentences = [f"Of {count}, {_lowest_ratio(_lowest(variances), 'gradient variance')}."]
    errors = rows[(rows["quantity"] == "mse_ratio") & (rows["value"] > 0)]
    if not errors.empty:
        n = errors["batch_size"].max()
        lowest = _lowest(errors[errors["batch_size"] == n])
        sentences.append(f"For a batch of {n:,}, {_lowest_ratio(lowest, 'mean squared error')}.")
    return " ".join(sentences)


def _lowest_ratio(row: pd.Series, what: str) -> str:
    if is_measurable(row, 1):
        return f"{row['estimator']} has the lowest {what}, {number(row)} times MeanFlow's"
    return f"{row['estimator']} has the lowest {what}, but its difference from MeanFlow's is {not_measurable(row)}"


def _times(frame: pd.DataFrame) -> str:
    gains = {row["quantity"]: row for _, row in of_quantity(frame, "predicted_gain", "measured_gain").iterrows()}
    if len(gains) < 2:
        return ""
    predicted, measured = gains["predicted_gain"], gains["measured_gain"]
    drawing = "Drawing (r, t) from the density of lowest variance, with the loss reweighted,"
    effect = (
        f"{drawing} {change(measured, 'the gradient variance')} on new samples"
        if is_measurable(measured, 1)
        else f"{drawing} has an effect on the gradient variance that is {not_measurable(measured)}"
    )
    return f"{effect} (predicted: {change(predicted, 'it')})."


_SENTENCES: dict[str, Callable[[pd.DataFrame], str]] = {
    "sweep": _sweep,
    "variance": _variance,
    "coefficient": _coefficient,
    "compare": _compare,
    "times": _times,
    "quality": _quality,
}
