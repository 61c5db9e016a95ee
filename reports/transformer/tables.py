"""Prints the tables of README.md from the Parquet files beside it: python reports/transformer/tables.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t

from mfdiag.tables import read_table

FOLDER = Path(__file__).parent
BETAS = ("0", "0.25", "0.5", "1")
METRICS = ("frechet_distance", "precision", "recall", "density", "coverage", "memorization")


def interval(values: np.ndarray, digits: int) -> str:
    """Geometric mean over seeds with its 95 % interval."""
    logs = np.log(values)
    half = t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
    middle, low, high = np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def with_beta(quantity: str) -> pd.DataFrame:
    """Rows of table quality of one quantity, with the coefficient that each model was trained with."""
    rows = read_table("quality", FOLDER / "quality").query("quantity == @quantity")
    return rows.assign(beta=rows["checkpoint"].str.extract(r"beta=([\d.]+)")[0])


def quality(weights: str, nfe: int) -> list[str]:
    """A line for each metric: means over seeds at each beta, with their intervals."""
    rows = with_beta("mean_over_seeds").query("weights == @weights and nfe == @nfe").set_index(["metric", "beta"])
    lines = []
    for metric in METRICS:
        cells = [rows.loc[(metric, beta)] for beta in BETAS]
        texts = [f"{cell['value']:.2f} [{cell['ci_low']:.2f}, {cell['ci_high']:.2f}]" for cell in cells]
        lines.append(f"| {metric} | {' | '.join(texts)} |")
    return lines


def ratios() -> list[str]:
    """A line for each set of weights and number of steps: Frechet distance over that at beta = 0, paired by seed."""
    rows = with_beta("value").query("metric == 'frechet_distance'")
    lines = []
    for (weights, nfe), part in rows.groupby(["weights", "nfe"]):
        seeds = part["checkpoint"].str.extract(r"seed=(\d)")[0]
        table = part.assign(training_seed=seeds).pivot(index="training_seed", columns="beta", values="value")
        cells = [interval((table[beta] / table["0"]).to_numpy(float), 2) for beta in BETAS[1:]]
        lines.append(f"| {weights} | {nfe} | {' | '.join(cells)} |")
    return lines


def loss_variances() -> list[str]:
    """A line for each bin of t: loss variance of the conditional tangent over that of the deterministic one."""
    rows = read_table("variance", FOLDER / "variance").query("quantity == 'loss_variance' and t_low == t_low")
    lines = []
    for (low, high), part in rows.groupby(["t_low", "t_high"]):
        table = part.pivot(index="checkpoint", columns="estimator", values="value")
        samples = int(part["n_samples"].sum() // 2)
        if low < 0.9:
            ratio = interval((table["meanflow"] / table["ema_tangent"]).to_numpy(float), 1)
            lines.append(f"| {low:.1f} to {high:.1f} | {samples} | {ratio} |")
    return lines


def optima() -> list[str]:
    """A line for each batch size: the optimal coefficient of the first model with beta = 0, gradient form."""
    rows = read_table("coefficient", FOLDER / "coefficient").query("form == 'gradient' and role == 'tangent'")
    rows = rows[(rows["quantity"] == "optimum") & rows["batch_size"].notna()].sort_values("batch_size")
    return [
        f"| {int(row.batch_size):,} | {row.value:.2g} [{row.ci_low:.2g}, {row.ci_high:.2g}] | {row.status} |"
        for row in rows.itertuples()
    ]


def page() -> dict[str, list[str]]:
    """Title of a table -> its lines."""
    tables = {f"quality, {weights}, NFE {nfe}": quality(weights, nfe) for weights in ("ema", "raw") for nfe in (1, 2)}
    return tables | {"ratios": ratios(), "loss variance by t": loss_variances(), "optimum": optima()}


if __name__ == "__main__":
    for title, table in page().items():
        print(title, *table, "", sep="\n")
