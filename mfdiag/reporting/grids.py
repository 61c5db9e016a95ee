"""What a grid of models shows, in sentences: one subject for each data set, and one for all of them."""

from __future__ import annotations

import pandas as pd

from mfdiag.figures.style import number
from mfdiag.reporting.sentences import Findings, with_interval

__all__ = ["grid_findings"]

_METRIC = "sliced_wasserstein"


def grid_findings(frame: pd.DataFrame) -> list[Findings]:
    """Sentences from table `grid`."""
    found = []
    for dataset, part in frame.groupby("dataset", sort=False):
        tell = _over_all if dataset == "all" else _dataset
        found.append(Findings("all data sets" if dataset == "all" else str(dataset), tell(part)))
    return [item for item in found if item.sentences]


def _dataset(part: pd.DataFrame) -> list[str]:
    sentences = []
    ratios = part[part["quantity"] == "variance_ratio"]
    if len(ratios):
        last = ratios.sort_values("beta").iloc[-1]
        sentences.append(
            f"Training at beta = {last['beta']:g} instead of 0 divides the gradient variance by {with_interval(last)}."
        )
    quality = part[(part["metric"] == _METRIC) & (part["nfe"] == part["nfe"].min())]
    for weights, rows in quality.groupby("weights", sort=False):
        means = rows[rows["quantity"] == "quality"].sort_values("beta")
        best = rows[rows["quantity"] == "best_beta"].iloc[0]
        ends = " and ".join(f"{with_interval(row)} at {row['beta']:g}" for _, row in means.iloc[[0, -1]].iterrows())
        spread = (
            "the others are worse by a paired t test"
            if best["ci_low"] == best["ci_high"]
            else f"not told from it by a paired t test: beta from {best['ci_low']:g} to {best['ci_high']:g}"
        )
        steps = f"NFE {rows['nfe'].iloc[0]}"
        sentences.append(
            f"Sliced Wasserstein-1 at {steps} with {weights} weights is {ends}; best at {best['value']:g} ({spread})."
        )
    optima = part[part["quantity"] == "optimum"].sort_values("batch_size")
    if len(optima):
        told = ", ".join(f"{with_interval(row)} for n = {number(row['batch_size'])}" for _, row in optima.iterrows())
        sentences.append(f"The models trained at beta = 0 give the optimum {told}.")
    return sentences


def _over_all(part: pd.DataFrame) -> list[str]:
    """Geometric means over data sets, and how far each predicted optimum is from the best trained beta."""
    sentences = []
    ratios = part[part["quantity"] == "variance_ratio"].sort_values("beta")
    if len(ratios):
        last = ratios.iloc[-1]
        sentences.append(
            f"Training at beta = {last['beta']:g} instead of 0 divides the gradient variance by {with_interval(last)}, "
            "geometric mean over data sets."
        )
    quality = part[part["metric"] == _METRIC]
    for (nfe, weights), found in quality.groupby(["nfe", "weights"], sort=False):
        told = [
            f"{with_interval(row)} at beta = {row['beta']:g}"
            for _, row in found[found["quantity"] == "quality_ratio"].sort_values("beta").iterrows()
        ]
        errors = [
            f"{with_interval(row)} for n = {number(row['batch_size'])}"
            for _, row in found[found["quantity"] == "prediction_error"].sort_values("batch_size").iterrows()
        ]
        text = f"Sliced Wasserstein-1 at NFE {nfe} with {weights} weights, against beta = 0: {', '.join(told)}"
        if errors:
            text += f"; distance from the predicted to the best beta: {', '.join(errors)}"
        sentences.append(f"{text}.")
    return sentences
