"""What a grid of models shows, in sentences: one subject for each data set, and one for all of them."""

from __future__ import annotations

import pandas as pd

from mfdiag.numbers import percent, with_interval
from mfdiag.reporting.sentences import Answers, Statement, change, is_measurable, not_measurable, number

__all__ = ["grid_statements"]

_METRIC = "sliced_wasserstein"
_ALL = "all"  # data set of the rows over all of them


def grid_statements(frame: pd.DataFrame) -> list[Answers]:
    """Statements from table `grid`."""
    answers = [
        Answers("all data sets", _over_datasets(part), _ALL)
        if dataset == _ALL
        else Answers(str(dataset), _dataset(part), str(dataset))
        for dataset, part in frame.groupby("dataset", sort=False)
    ]
    return [answer for answer in answers if answer.statements]


def _dataset(part: pd.DataFrame) -> list[Statement]:
    stated = _variance(part, "seed")
    quality = part[(part["metric"] == _METRIC) & (part["nfe"] == part["nfe"].min())]
    for weights, rows in quality.groupby("weights", sort=False):
        means = rows[rows["quantity"] == "quality"].sort_values("beta")
        ends = " and ".join(f"{number(row)} at beta = {row['beta']:g}" for _, row in means.iloc[[0, -1]].iterrows())
        best = rows[rows["quantity"] == "best_beta"].iloc[0]
        samples = f"at NFE {rows['nfe'].iloc[0]} with {weights} weights"
        text = f"Sliced Wasserstein-1 {samples} is {ends}; {_best(best, means['beta'])}."
        stated.append(Statement("samples", text, ("grid_quality",)))
    optima = part[part["quantity"] == "optimum"].sort_values("batch_size")
    if len(optima):
        by_size = [f"{_optimum(row)} for n = {int(row['batch_size']):,}" for _, row in optima.iterrows()]
        text = f"The models trained at beta = 0 predict an optimal beta of {', '.join(by_size)}."
        stated.append(Statement("samples", text, ("grid_optimum",)))
    return stated


def _variance(part: pd.DataFrame, unit: str, note: str = "") -> list[Statement]:
    """The effect of the largest trained beta on the gradient variance; `unit` is what n_samples counts."""
    ratios = part[part["quantity"] == "variance_ratio"].sort_values("beta")
    if ratios.empty:
        return []
    last = ratios.iloc[-1]
    training = f"Training at beta = {last['beta']:g} instead of 0"
    if is_measurable(last, 1):
        text = f"{training} {change(last, 'the gradient variance')}{note}."
        return [Statement("remedies", text, ("grid_variance",))]
    text = f"{training} has an effect on the gradient variance that is {not_measurable(last, unit)}."
    return [Statement("remedies", text, ("grid_variance",), False)]


def _best(best: pd.Series, betas: pd.Series) -> str:
    """Which beta has the lowest distance, and which do not differ from it by the paired t test over seeds."""
    lowest = f"lowest at beta = {best['value']:g}"
    if best["n_samples"] < 2:
        return f"{lowest}, a difference {not_measurable(best, 'seed')}"
    if best["ci_low"] == best["ci_high"]:
        return f"{lowest}, and every other beta is significantly worse"
    if best["ci_low"] <= betas.min() and best["ci_high"] >= betas.max():
        return f"{lowest}, but no beta differs significantly"
    return f"{lowest}, but no beta from {best['ci_low']:g} to {best['ci_high']:g} differs significantly"


def _optimum(row: pd.Series) -> str:
    return number(row) if is_measurable(row, 0) else not_measurable(row, "seed")


def _over_datasets(part: pd.DataFrame) -> list[Statement]:
    """Geometric means over data sets, and the distance from each predicted optimum to the best trained beta."""
    stated = _variance(part, "data set", ", geometric mean over data sets")
    quality = part[part["metric"] == _METRIC]
    for (nfe, weights), rows in quality.groupby(["nfe", "weights"], sort=False):
        samples = f"at NFE {nfe} with {weights} weights"
        ratios = rows[rows["quantity"] == "quality_ratio"].sort_values("beta")
        if len(ratios):
            text = f"Change of sliced Wasserstein-1 {samples} relative to beta = 0: {_changes(ratios)}."
            stated.append(
                Statement(
                    "samples", text, ("grid_quality",), any(is_measurable(row, 1) for _, row in ratios.iterrows())
                )
            )
        errors = rows[rows["quantity"] == "prediction_error"].sort_values("batch_size")
        if len(errors):
            text = f"Distance from the predicted to the best beta {samples}: {_errors(errors)}."
            stated.append(Statement("samples", text, ("grid_optimum",)))
    return stated


def _changes(ratios: pd.DataFrame) -> str:
    """Relative change of the distance at each beta."""
    texts = [
        f"{with_interval(row['value'] - 1, row['ci_low'] - 1, row['ci_high'] - 1, percent)} at beta = {row['beta']:g}"
        for _, row in ratios.iterrows()
        if is_measurable(row, 1)
    ]
    others = [row for _, row in ratios.iterrows() if not is_measurable(row, 1)]
    if others:
        betas = ", ".join(f"{row['beta']:g}" for row in others)
        texts.append(f"{not_measurable(others[0], 'data set')} at {f'beta = {betas}' if texts else 'any beta'}")
    return "; ".join(texts)


def _errors(errors: pd.DataFrame) -> str:
    """Distance between two betas for each batch size of the prediction."""
    texts = [
        f"{number(row)} for n = {int(row['batch_size']):,}" for _, row in errors.iterrows() if is_measurable(row, 0)
    ]
    others = [row for _, row in errors.iterrows() if not is_measurable(row, 0)]
    if others:
        sizes = ", ".join(f"{int(row['batch_size']):,}" for row in others)
        texts.append(f"{not_measurable(others[0], 'data set')} for {f'n = {sizes}' if texts else 'any n'}")
    return "; ".join(texts)
