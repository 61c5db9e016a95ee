"""Pages reports/question and reports/family, written from their tables: no number in them is typed by hand.

    python benchmarks/question_page.py

`question_text` and `family_text` return the pages; a test compares them with the files. Tables are those that
`benchmarks/question.py` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

REPORTS = Path(__file__).parents[1] / "reports"
ADAM = 10
"""Batches that Adam averages over before a step, 1/(1 - 0.9)."""

_REPLICATES = 2000


class Interval(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    @property
    def excludes(self) -> Callable[[float], bool]:
        return lambda number: not self.low <= number <= self.high


def student(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean of independent values, by Student's t."""
    values = np.asarray(values, float)
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def ratio(values: pd.Series, base: pd.Series) -> Interval:
    """Geometric mean of paired ratios, over what both are indexed by."""
    logs = np.log(values / base.reindex(values.index))
    return Interval(*np.exp(student(logs.dropna())))


def bootstrap(count: int, statistic: Callable[[np.ndarray], float]) -> Interval:
    """A statistic of `count` units, by the percentile bootstrap over them; undefined replicates do not count.

    Args:
        count: Number of units, such as seeds.
        statistic: Of the numbers of the units drawn [count].

    Returns:
        The statistic of all units, and its interval.
    """
    rng = np.random.default_rng(0)
    replicates = np.array([statistic(rng.integers(0, count, count)) for _ in range(_REPLICATES)])
    low, high = np.nanquantile(replicates, [0.025, 0.975])
    return Interval(statistic(np.arange(count)), float(low), float(high))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def read(report: str, name: str) -> pd.DataFrame:
    return pd.read_parquet(REPORTS / report / f"{name}.parquet")


# The question: four explanations.

CELL = ["batch_size", "ema_decay", "learning_rate", "weights"]


def horizon(batch_size: float, ema_decay: float, weights: str) -> float:
    """Samples that weights average over, at least: Adam's batches, and for averaged weights those of the average."""
    return batch_size * (max(ADAM, 1 / (1 - ema_decay)) if weights == "ema" else ADAM)


def by_beta(models: pd.DataFrame, quality: str) -> pd.DataFrame:
    """Log of a measure, a row for each seed and a column for each beta."""
    return np.log(models.pivot(index="seed", columns="beta", values=quality))


def best_beta(logs: np.ndarray, betas: np.ndarray) -> float:
    """Where the parabola through the mean over seeds [seeds, betas] is lowest on [0, 1]."""
    grid = np.linspace(0, 1, 101)
    return float(grid[np.polyval(np.polyfit(betas, logs.mean(0), 2), grid).argmin()])


def predicted_beta(optima: pd.DataFrame, n: float) -> np.ndarray:
    """beta*_0 / (1 + n/n0), moved into [0, 1], of each measured model (docs/theory.md#batch-aware)."""
    return np.clip(optima["optimum"] / (1 + n / optima["critical_batch"]), 0, 1).to_numpy()


class AveragingCell(NamedTuple):
    """One way of averaging: what theory predicts for it, and logs of the distance by seed and beta."""

    key: tuple[float, float, float, str]
    n: float
    predicted: np.ndarray
    logs: pd.DataFrame


def averaging_cells(quality: str) -> list[AveragingCell]:
    """Every batch size, rate, decay and kind of weights, in the order of n."""
    models, optima = read("question", "models"), read("question", "optimum")
    final = models[(models["step"] == models["steps"]) & (models["beta_by"] == "") & (models["proxy"] == "ema")]
    optima = optima[optima["step"] == optima["steps"]]
    cells = []
    for key, group in final.groupby(CELL):
        n = horizon(float(key[0]), float(key[1]), str(key[3]))
        own = optima[(optima[CELL[:3]] == pd.Series(dict(zip(CELL[:3], key[:3], strict=True)))).all(axis=1)]
        if len(own):
            cells.append(AveragingCell(key, n, predicted_beta(own.sort_values("seed"), n), by_beta(group, quality)))
    return sorted(cells, key=lambda cell: (cell.n, cell.key))


def regression(cells: Sequence[AveragingCell]) -> tuple[Interval, Interval]:
    """Best beta regressed on the predicted one over cells: slope and rank correlation, by bootstrap over seeds."""

    def pairs(seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        predicted = np.array([cell.predicted[seeds].mean() for cell in cells])
        best = np.array([best_beta(cell.logs.to_numpy()[seeds], cell.logs.columns.to_numpy()) for cell in cells])
        return predicted, best

    def slope(seeds: np.ndarray) -> float:
        predicted, best = pairs(seeds)
        return float(np.polyfit(predicted, best, 1)[0]) if np.ptp(predicted) else np.nan

    def rank(seeds: np.ndarray) -> float:
        return rank_correlation(*pairs(seeds))

    count = len(cells[0].logs)
    return bootstrap(count, slope), bootstrap(count, rank)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; NaN where one is constant."""
    return float(stats.spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else np.nan


def penalty_slope(cells: Sequence[AveragingCell]) -> Interval:
    """Change of log(distance at beta = 1 / at beta = 0) per decade of n, over seeds; theory says above 0."""
    decades = np.log10([cell.n for cell in cells])
    penalties = np.array([(cell.logs[1] - cell.logs[0]).to_numpy() for cell in cells])
    return student(np.polyfit(decades, penalties, 1)[0])


def averaging_table(cells: Sequence[AveragingCell]) -> str:
    rows = []
    for cell in cells:
        batch, decay, rate, weights = cell.key
        logs = cell.logs.to_numpy()
        betas = cell.logs.columns.to_numpy()
        best = bootstrap(len(logs), lambda seeds, logs=logs, betas=betas: best_beta(logs[seeds], betas))
        penalty = Interval(*np.exp(student(cell.logs[1] - cell.logs[0])))
        predicted = student(cell.predicted)
        name = "averaged" if weights == "ema" else "raw"
        labels = [f"{batch:,.0f}", f"{rate:g}", f"{decay:g}", name, f"{cell.n:,.0f}"]
        rows.append([*labels, f"{predicted.value:.2f}", best.text(), penalty.text(3)])
    headings = ["batch", "rate", "decay", "weights", "n", "predicted beta", "best beta", "distance at 1 over that at 0"]
    return table(headings, rows)


def optimum_table() -> str:
    """beta*_0 and n0 over training."""
    optima = read("question", "optimum")
    rows = []
    for batch, group in optima.groupby("batch_size"):
        for share, part in group.groupby(group["step"] / group["steps"]):
            n0 = Interval(*np.exp(student(np.log(part["critical_batch"]))))
            text = f"{n0.value:,.0f} [{n0.low:,.0f}, {n0.high:,.0f}]"
            rows.append([f"{batch:,}", f"{share:g}", student(part["optimum"]).text(), text])
    return table(["batch", "share of training", "beta*_0", "n0"], rows)


def order_table(qualities: Sequence[str]) -> tuple[str, dict[tuple[str, str], Interval]]:
    """Rank correlation over the five betas of what a diagnostic and a quality say, mean over batches and steps."""
    models = read("question", "models")
    corners = (models["beta_by"] == "") & (models["proxy"] == "ema") & (models["weights"] == "ema")
    models = models[corners & (models["learning_rate"] == 1e-3) & (models["ema_decay"] == 0.99)]
    names = ["velocity_error", "interval_defect", "map_distance"]
    values = {
        name: np.array([by_beta(part, name).to_numpy() for _, part in models.groupby(["batch_size", "step"])])
        for name in {*names, *qualities}
    }  # [cells, seeds, betas]
    found = {}
    for name in names:
        for quality in qualities:
            if name == quality:
                continue

            def statistic(seeds: np.ndarray, a: np.ndarray = values[name], b: np.ndarray = values[quality]) -> float:
                return float(
                    np.nanmean(
                        [rank_correlation(x[seeds].mean(0), y[seeds].mean(0)) for x, y in zip(a, b, strict=True)]
                    )
                )

            found[name, quality] = bootstrap(values[name].shape[1], statistic)
    rows = [
        [name.replace("_", " "), *(found[name, q].text() if (name, q) in found else "" for q in qualities)]
        for name in names
    ]
    return table(["", *(q.replace("_", " ") for q in qualities)], rows), found


# The family: does the tool's ranking predict the outcome?

PREDICTORS = {
    "variance": "variance",
    "variance times cost": "variance",
    "bias2": "bias2",
    "mse of one batch": "mse",
    "mse of what the average sees": "mse",
}


def method_of(row: pd.Series) -> str:
    """Name of the method in the registry."""
    points = {(0, 0, "ema"): "meanflow", (1, 0, "ema"): "ema_tangent", (1, 0, "self"): "self_tangent"}
    return str(row["estimator"] or points.get((row["beta"], row["gamma"], row["proxy"]), "distillation"))


def outcomes(quality: str = "sliced_wasserstein") -> pd.DataFrame:
    """Log of the quality of averaged weights: a row for each data set and method, a column for each seed."""
    models = read("family", "models")
    models = models[(models["step"] == models["steps"]) & (models["weights"] == "ema")]
    models = models.assign(method=models.apply(method_of, axis=1), log=np.log(models[quality]))
    return models.pivot(index=["data", "method"], columns="seed", values="log")


def predictions() -> pd.DataFrame:
    """Log of each predictor, mean over seeds: a row for each data set and method."""
    said = read("family", "predicted")
    largest, smallest = said["batch_size"].max(), said["batch_size"].min()

    def mean(quantity: str, batch: float | None = None) -> pd.Series:
        rows = said[
            (said["quantity"] == quantity)
            & (said["batch_size"].isna() if batch is None else said["batch_size"] == batch)
        ]
        return np.log(rows["value"].clip(lower=1e-12)).groupby([rows["data"], rows["estimator"]]).mean()

    columns = {
        "variance": mean("variance"),
        "variance times cost": mean("variance") + mean("cost"),
        "bias2": mean("bias2"),
        "mse of one batch": mean("mse", smallest),
        "mse of what the average sees": mean("mse", largest),
    }
    return pd.DataFrame(columns).rename_axis(["data", "method"])


def rank_scores(leave_out: Sequence[str] = ()) -> dict[str, Interval]:
    """Rank correlation over methods of each predictor with the quality; the interval takes data sets as the sample."""
    outcome, said = outcomes().mean(axis=1), predictions()
    joined = said.join(outcome.rename("outcome"), how="inner").reset_index()
    joined = joined[~joined["method"].isin(leave_out)]
    return {
        name: student([rank_correlation(part[name], part["outcome"]) for _, part in joined.groupby("data")])
        for name in said.columns
    }
