"""What the tables of a folder show: statements for each table, with the numbers and intervals they rest on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from mfdiag.numbers import percent
from mfdiag.reporting.grids import grid_statements
from mfdiag.reporting.sentences import (
    Answers,
    Findings,
    Statement,
    change,
    is_measurable,
    not_measurable,
    number,
)
from mfdiag.tables.selection import by_time, of_quantity, over_all_times, overall

__all__ = ["Findings", "findings", "headline", "statements"]

_SETTINGS = ["checkpoint", "step", "dataset", "proxy", "weighting", "times", "seed"]
_HEADLINE_ORDER = ("noise", "remedies", "samples", "where", "cost")
_Setting = tuple[Any, ...]  # a value for each of _SETTINGS, None where null


def findings(tables: Mapping[str, pd.DataFrame]) -> list[Findings]:
    """`statements` as sentences: one for each table, or for a grid one for each statement."""
    return [Findings(subject, list(filter(None, map(" ".join, texts)))) for subject, texts in _texts(tables)]


def _texts(tables: Mapping[str, pd.DataFrame]) -> list[tuple[str, list[list[str]]]]:
    """For each subject, the texts of each table, or of each statement of a grid."""
    if "grid" in tables:
        return [(subject, [[one.text] for one in of_subject]) for subject, of_subject, _ in statements(tables)]
    return [
        (subject, [[one.text for one in of_subject if one.table == name] for name in _STATEMENTS])
        for subject, of_subject, _ in statements(tables)
    ]


def headline(answers: Sequence[Statement], most: int = 3) -> list[str]:
    """The sentences that matter: the first measurable one of each question, in the order of the questions."""
    order = sorted(answers, key=lambda one: (not one.measurable, one.table == "sweep"))  # a remedy before a survey
    first = {one.question: one for one in reversed(order)}
    chosen = [first[question] for question in _HEADLINE_ORDER if question in first]
    return [one.text for one in sorted(chosen, key=lambda one: not one.measurable)[:most]]


def statements(tables: Mapping[str, pd.DataFrame]) -> list[Answers]:
    """What each model and setting in the tables (tidy, by name) shows; none where a table lacks its rows.

    For a grid of models, statements for each data set instead.
    """
    if "grid" in tables:
        return grid_statements(tables["grid"])
    tables = {name: frame for name, frame in tables.items() if name in _STATEMENTS}
    settings = {name: _settings_of(frame) for name, frame in tables.items()}
    distinct = list(dict.fromkeys(setting for of_table in settings.values() for setting in of_table))
    completed = {setting: _completed(setting, distinct) for setting in distinct}
    settings = {name: [completed[setting] for setting in of_table] for name, of_table in settings.items()}
    subjects = list(dict.fromkeys(completed.values()))
    differs = [len(set(values)) > 1 for values in zip(*subjects, strict=True)]
    answers = []
    for subject in subjects:
        of_subject = [
            statement._replace(table=name)
            for name, state in _STATEMENTS.items()
            if name in tables
            for statement in state(tables[name][[setting == subject for setting in settings[name]]])
        ]
        if of_subject:
            answers.append(Answers(_subject(subject, differs), of_subject, str(subject[_SETTINGS.index("dataset")])))
    return answers


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


def _sweep(frame: pd.DataFrame) -> list[Statement]:
    rows = overall(of_quantity(frame, "variance", "bias2", "mse"))
    rows = rows[(rows["space"] == "gradient") & (rows["gamma"] == 0)].sort_values("beta")
    variance = rows[rows["quantity"] == "variance"]
    if variance.empty:
        return []
    first, last = variance.iloc[0], variance.iloc[-1]
    text = f"The gradient variance of one sample is {number(first)} at"
    shows = ("bias_variance",)
    if len(variance) == 1:
        return [Statement("remedies", f"{text} beta = {first['beta']:g}.", shows)]
    biases = rows[rows["quantity"] == "bias2"]
    if not biases.empty and (biases["value"] == 0).all():
        cost = (
            "At every beta, the squared bias is 0 and the gradients are the same: beta weights the tangent, which "
            "vanishes where r = t."
        )
        text += f" all {len(variance)} values of beta."
        return [Statement("remedies", text, shows), Statement("cost", cost, shows)]
    text += (
        f" beta = {first['beta']:g} and {number(last)} at beta = {last['beta']:g}; of {len(variance)} values of beta, "
        f"it is lowest at {_lowest(variance)['beta']:g}."
    )
    errors = rows[rows["quantity"] == "mse"]
    if errors.empty:
        return [Statement("remedies", text, shows)]
    bias = biases[biases["beta"] == last["beta"]].iloc[0]
    size = number(bias) if is_measurable(bias, 0) else not_measurable(bias)
    if last["beta"] == 0:
        size = "0 by definition"
    sizes = dict.fromkeys((errors["batch_size"].min(), errors["batch_size"].max()))
    places = [_where_lowest(errors[errors["batch_size"] == n]) for n in sizes]
    minima = " and ".join(f"{place} for a batch of {n:,}" for place, n in zip(places, sizes, strict=True))
    if len(sizes) > 1 and len(set(places)) == 1:
        minima = f"{places[0]} for batches of {' and '.join(f'{n:,}' for n in sizes)}"
    cost = f"The squared bias at beta = {last['beta']:g} is {size}. The mean squared error is lowest {minima}."
    return [Statement("remedies", text, shows), Statement("cost", cost, (*shows, "plane"))]


def _where_lowest(errors: pd.DataFrame) -> str:
    lowest = _lowest(errors)
    return f"at beta = {lowest['beta']:g}" if lowest["value"] > 0 else f"at a beta {not_measurable(lowest)}"


def _variance(frame: pd.DataFrame) -> list[Statement]:
    shares = over_all_times(of_quantity(frame, "top1_share"))
    if shares.empty:
        return []
    first, *others = (number(row, percent) for _, row in shares.iterrows())
    main, *methods = shares["estimator"]
    carried = [f"{first} of the squared gradient norm with {main}"]
    carried += [f"{share} with {method}" for share, method in zip(others, methods, strict=True)]
    rows = frame[frame["estimator"] == main]
    return [
        Statement("noise", f"The largest 1 % of samples carry {' and '.join(carried)}.", ("concentration",)),
        *_noise_scale(rows),
        *_places(rows, str(main)),
    ]


def _noise_scale(rows: pd.DataFrame) -> list[Statement]:
    """From which batch size on the gradient is more signal than noise."""
    scales = overall(of_quantity(rows, "noise_scale"))
    if scales.empty:
        return []
    row = scales.iloc[0]
    if not is_measurable(row, 0):
        return [Statement("noise", f"The batch size at which noise equals signal is {not_measurable(row)}.", (), False)]
    return [Statement("noise", f"In a batch of {number(row)} samples, the noise is as large as the mean gradient.")]


def _places(rows: pd.DataFrame, method: str) -> list[Statement]:
    """Which layer and which times have the most variance."""
    places, shows = [], []
    layers = over_all_times(of_quantity(rows, "variance"))
    layers = layers[layers["layer"] != "all"]
    if not layers.empty:
        layer = _largest(layers)
        places.append(f"layer {layer['layer']} has {percent(layer['value'] / layers['value'].sum())} of the variance")
        shows.append("layers")
    bins = by_time(of_quantity(rows, "variance"), "t")
    bins = bins[bins["status"] == "ok"]
    if not bins.empty and is_measurable(top := _largest(bins)):
        places.append(f"the variance is largest for t in [{top['t_low']:g}, {top['t_high']:g}]: {number(top)}")
    return [Statement("where", f"With {method}, {', and '.join(places)}.", tuple(shows))] if places else []


def _coefficient(frame: pd.DataFrame) -> list[Statement]:
    rows = overall(of_quantity(frame, "optimum", "critical_batch", "variance_reduction"))
    rows = rows[(rows["form"] == "gradient") & (rows["role"] == "tangent")]
    first = {name: part.iloc[0] for name, part in rows[rows["batch_size"].isna()].groupby("quantity")}
    optimum, reduction, critical = (first.get(name) for name in ("optimum", "variance_reduction", "critical_batch"))
    if optimum is None:
        return []
    shows = ("beta_map", "batch_optimum")
    if not is_measurable(optimum, 0):
        text = f"The beta of the lowest gradient variance is {not_measurable(optimum)}."
        return [Statement("remedies", text, shows, False)]
    text = f"For a small batch, the gradient variance is lowest at beta* = {number(optimum)}."
    stated = []
    if reduction is None or is_measurable(reduction, 1):
        effect = "" if reduction is None else f" Using beta* {change(reduction, 'the variance')} on held-out samples."
        stated.append(Statement("remedies", text + effect, shows))
    else:
        doubt = f"The effect of beta* on the variance is {not_measurable(reduction)}."
        stated += [Statement("remedies", text, shows), Statement("remedies", doubt, (), False)]
    if critical is not None:
        clear = is_measurable(critical) and critical["value"] > 0
        size = (
            f"Above {number(critical)} samples per batch, use half this beta."
            if clear
            else f"The batch size from which bias halves beta* is {not_measurable(critical)}."
        )
        stated.append(Statement("cost", size, ("batch_optimum",), clear))
    return stated


def _quality(frame: pd.DataFrame) -> list[Statement]:
    rows = of_quantity(frame, "value", "mean_over_seeds")
    rows = rows[rows["features"].isna() & (rows["metric"] == "sliced_wasserstein")].sort_values("nfe", kind="stable")
    distances = []
    for weights, part in rows.groupby("weights", dropna=False, sort=False):
        ends = part.iloc[[0, -1]].drop_duplicates("nfe")
        at_steps = [f"{number(row)} {_at_steps(row['nfe'])}" for _, row in ends.iterrows()]
        distances.append(" and ".join(at_steps) + ("" if pd.isna(weights) else f" with {weights!s} weights"))
    if not distances:
        return []
    text = f"The sliced Wasserstein distance between samples and data is {'; '.join(distances)}."
    return [Statement("samples", text, ("quality",))]


def _at_steps(nfe: Any) -> str:
    return "with the sampler's own steps" if pd.isna(nfe) else f"at NFE {nfe}"


def _compare(frame: pd.DataFrame) -> list[Statement]:
    rows = overall(of_quantity(frame, "variance_ratio", "mse_ratio"))
    rows = rows[rows["estimator"] != "meanflow"]
    variances = rows[rows["quantity"] == "variance_ratio"]
    if variances.empty:
        return []
    count = f"{len(variances)} other estimator{'' if len(variances) == 1 else 's'}"
    lowest = _lowest(variances)
    text = f"Of {count}, {_lowest_ratio(lowest, 'gradient variance')}."
    stated = [Statement("remedies", text, ("compare",), is_measurable(lowest, 1))]
    errors = rows[(rows["quantity"] == "mse_ratio") & (rows["value"] > 0)]
    if not errors.empty:
        n = errors["batch_size"].max()
        lowest = _lowest(errors[errors["batch_size"] == n])
        text = f"For a batch of {n:,}, {_lowest_ratio(lowest, 'mean squared error')}."
        stated.append(Statement("cost", text, ("compare",), is_measurable(lowest, 1)))
    return stated


def _lowest_ratio(row: pd.Series, what: str) -> str:
    if is_measurable(row, 1):
        return f"{row['estimator']} has the lowest {what}, {number(row)} times MeanFlow's"
    return f"{row['estimator']} has the lowest {what}, but its difference from MeanFlow's is {not_measurable(row)}"


def _times(frame: pd.DataFrame) -> list[Statement]:
    gains = {row["quantity"]: row for _, row in of_quantity(frame, "predicted_gain", "measured_gain").iterrows()}
    if len(gains) < 2:
        return []
    predicted, measured = gains["predicted_gain"], gains["measured_gain"]
    drawing = "Drawing (r, t) from the density of lowest variance, with the loss reweighted,"
    clear = is_measurable(measured, 1)
    effect = (
        f"{drawing} {change(measured, 'the gradient variance')} on new samples"
        if clear
        else f"{drawing} has an effect on the gradient variance that is {not_measurable(measured)}"
    )
    return [Statement("remedies", f"{effect} (predicted: {change(predicted, 'it')}).", ("time_density",), clear)]


_STATEMENTS: dict[str, Callable[[pd.DataFrame], list[Statement]]] = {
    "sweep": _sweep,
    "variance": _variance,
    "coefficient": _coefficient,
    "compare": _compare,
    "times": _times,
    "quality": _quality,
}
