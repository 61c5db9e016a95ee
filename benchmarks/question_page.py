"""Pages reports/question and reports/family, written from their tables: no number in them is typed by hand.

    mfdiag report reports/question reports/family --page benchmarks/question_page.py:write

`question_text` and `family_text` return the pages; a test compares them with the files. Tables are those that
`benchmarks/question.py` writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPORTS = Path(__file__).parents[1] / "reports"
ADAM = 10
"""Batches that Adam averages over before a step, 1/(1 - 0.9)."""

_REPLICATES = 300


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


def student(values: Sequence[float] | np.ndarray | pd.Series) -> Interval:
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


@cache
def read(report: str, name: str) -> pd.DataFrame:
    return pd.read_parquet(REPORTS / report / f"{name}.parquet")


# The question: four explanations.

CELL = ["batch_size", "ema_decay", "learning_rate", "weights"]
SETTING = ["batch_size", "learning_rate", "ema_decay"]


def horizon(batch_size: float, ema_decay: float, weights: str) -> float:
    """Samples that weights average over, at least: Adam's batches, and for averaged weights those of the average."""
    return batch_size * (max(ADAM, 1 / (1 - ema_decay)) if weights == "ema" else ADAM)


def by_beta(models: pd.DataFrame, quality: str) -> pd.DataFrame:
    """Log of a measure, a row for each seed and a column for each beta."""
    values = models.pivot(index="seed", columns="beta", values=quality)
    return np.log(values.where(values > 0))  # an estimate without bias may be below 0


BETA_GRID = np.linspace(0, 1, 101)


@cache
def parabola(betas: tuple[float, ...]) -> np.ndarray:
    """Values at `betas` -> values of the parabola through them on BETA_GRID, as a matrix."""
    matrix: np.ndarray = np.vander(BETA_GRID, 3) @ np.linalg.pinv(np.vander(betas, 3))
    return matrix


def best_beta(logs: np.ndarray, betas: np.ndarray) -> float:
    """Where the parabola through the mean over seeds [seeds, betas] is lowest on [0, 1]."""
    return float(BETA_GRID[(parabola(tuple(betas)) @ logs.mean(0)).argmin()])


def predicted_beta(optima: pd.DataFrame, n: float) -> np.ndarray:
    """beta*_0 / (1 + n/n0), moved into [0, 1], of each measured model (docs/theory.md#batch-aware)."""
    return np.clip(optima["optimum"] / (1 + n / optima["critical_batch"]), 0, 1).to_numpy()


class AveragingCell(NamedTuple):
    """One way of averaging: what theory predicts for it, and logs of the distance by seed and beta."""

    key: tuple[float, float, float, str]
    n: float
    predicted: np.ndarray
    logs: pd.DataFrame


AVERAGING = {
    "mixture:2,8": (("models", "rates", "decay"), ("optimum", "rates_optimum", "decay_optimum")),
    "mixture:16,8": (("dimensions", "dimensions_batch", "dimensions_tangent"), ("dimensions_optimum",)),
}
"""Data set -> tables of models, and of their optima."""


@cache
def averaging_cells(quality: str, data: str = "mixture:2,8") -> list[AveragingCell]:
    """Every batch size, rate, decay and kind of weights, in the order of n; without those with a value below 0."""
    models, optima = (pd.concat([read("question", name) for name in names]) for names in AVERAGING[data])
    final = models[(models["step"] == models["steps"]) & (models["beta_by"] == "") & (models["proxy"] == "ema")]
    final = final[~final["times"].str.startswith("density")]
    optima = optima[optima["step"] == optima["steps"]]
    cells = []
    for key, group in final.groupby(CELL):
        n = horizon(float(key[0]), float(key[1]), str(key[3]))
        own = optima[(optima[CELL[:3]] == pd.Series(dict(zip(CELL[:3], key[:3], strict=True)))).all(axis=1)]
        logs = by_beta(group, quality)
        if len(own) and np.isfinite(logs).all(axis=None):
            cells.append(AveragingCell(key, n, predicted_beta(own.sort_values("seed"), n), logs))
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
        return float(rank_correlation(*pairs(seeds)))

    count = len(cells[0].logs)
    return bootstrap(count, slope), bootstrap(count, rank)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's over the last axis; NaN where one is constant."""
    a, b = (stats.rankdata(values, axis=-1) - (values.shape[-1] + 1) / 2 for values in (a, b))
    with np.errstate(invalid="ignore"):
        return np.asarray((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1)))


def penalty_slope(cells: Sequence[AveragingCell]) -> Interval:
    """Change of log(distance at beta = 1 / at beta = 0) per decade of n, over seeds; theory says above 0."""
    decades = np.log10([cell.n for cell in cells])
    penalties = np.array([(cell.logs[1] - cell.logs[0]).to_numpy() for cell in cells])
    return student(np.polyfit(decades, penalties, 1)[0])


def penalty_on_prediction(cells: Sequence[AveragingCell]) -> Interval:
    """Rank correlation over cells of the predicted beta with what beta = 1 costs; theory says below 0."""

    costs = [(cell.logs[1] - cell.logs[0]).to_numpy() for cell in cells]

    def rank(seeds: np.ndarray) -> float:
        predicted = np.array([cell.predicted[seeds].mean() for cell in cells])
        return float(rank_correlation(predicted, np.array([cost[seeds].mean() for cost in costs])))

    return bootstrap(len(cells[0].logs), rank)


def shallow(cells: Sequence[AveragingCell]) -> str:
    """The distance at beta = 0.25 over that at 0, where it was trained, averaged weights."""
    [logs] = [cell.logs for cell in cells if 0.25 in cell.logs.columns and cell.key[3] == "ema"]
    return Interval(*np.exp(student(logs[0.25] - logs[0.0]))).text(3)


def averaging_table(cells: Sequence[AveragingCell]) -> str:
    rows = []
    for cell in cells:
        batch, decay, rate, weights = cell.key
        best = _best_interval(cell.logs).text() if len(cell.logs.columns) > 2 else ""
        penalty = Interval(*np.exp(student(cell.logs[1] - cell.logs[0])))
        predicted = student(cell.predicted)
        name = "averaged" if weights == "ema" else "raw"
        labels = [f"{batch:,.0f}", f"{rate:g}", f"{decay:g}", name, f"{cell.n:,.0f}"]
        rows.append([*labels, f"{predicted.value:.2f}", best, penalty.text(3)])
    headings = ["batch", "rate", "decay", "weights", "n", "predicted beta", "best beta", "distance at 1 over that at 0"]
    return table(headings, rows)


def optimum_table() -> str:
    """beta*_0 and n0 by batch, rate and decay, over training where it was measured."""
    optima = pd.concat([read("question", name) for name in AVERAGING["mixture:2,8"][1]])
    optima = optima.assign(share=optima["step"] / optima["steps"])
    rows = []
    for (batch, rate, decay, share), part in optima.groupby([*SETTING, "share"]):
        n0 = Interval(*np.exp(student(np.log(part["critical_batch"]))))
        text = f"{n0.value:,.0f} [{n0.low:,.0f}, {n0.high:,.0f}]"
        rows.append([f"{batch:,}", f"{rate:g}", f"{decay:g}", f"{share:g}", student(part["optimum"]).text(), text])
    return table(["batch", "rate", "decay", "share of training", "beta*_0", "n0"], rows)


@cache
def order_table(qualities: tuple[str, ...]) -> tuple[str, dict[tuple[str, str], Interval]]:
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
                return float(np.nanmean(rank_correlation(a[:, seeds].mean(1), b[:, seeds].mean(1))))

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


def outcomes(quality: str = "energy_distance") -> pd.DataFrame:
    """Log of the quality of averaged weights: a row for each data set and method, a column for each seed."""
    models = read("family", "models")
    models = models[(models["step"] == models["steps"]) & (models["weights"] == "ema")]
    models = models.assign(method=models.apply(method_of, axis=1), log=np.log(models[quality]))
    return models.pivot(index=["data", "method"], columns="seed", values="log")


def predictions() -> pd.DataFrame:
    """Log of each predictor, mean over seeds: a row for each data set and method."""
    said = read("family", "predicted")
    said = said[said["step"] == said["steps"] // 5]
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


# The pages.

NAMES = {
    ("", "ema", 0.0): "beta = 0 (corner)",
    ("", "ema", 1.0): "beta = 1, averaged weights (corner)",
    ("", "self", 1.0): "beta = 1, the network itself",
    ("", "exact", 1.0): "beta = 1, exact velocity",
    ("", "exact", 0.5): "beta = 0.5, exact velocity",
    ('{"end": 0.0}', "ema", 1.0): "beta from 1 to 0 over training",
    ('{"end": 1000.0}', "ema", 0.001): "beta from 0 to 1 over training",
    ('{"gap": [0.0, 0.25]}', "ema", 1.0): "beta = 1 for t - r below 0.25",
    ('{"gap": [0.0, 0.5]}', "ema", 1.0): "beta = 1 for t - r below 0.5",
    ('{"gap": [0.5, 1.0]}', "ema", 1.0): "beta = 1 for t - r above 0.5",
    ('{"t": [0.7, 1.0]}', "ema", 1.0): "beta = 1 for t above 0.7",
    ('{"t": [0.0, 0.4]}', "ema", 1.0): "beta = 1 for t below 0.4",
}
"""(beta_by, proxy, beta) -> what sweeps/question_tangent.yaml and its corners train."""

CELLS = ("beta*_0 by cell", "beta*_0 by cell, moved into [0, 1]", "beta*_n by cell, moved into [0, 1]")
"""Names of `beta_by: {cells: ...}` in sweeps/question_cells.yaml and question_16d_tangent.yaml."""

ZERO, ONE = NAMES["", "ema", 0.0], NAMES["", "ema", 1.0]
SELF, EXACT = NAMES["", "self", 1.0], NAMES["", "exact", 1.0]
HALF = NAMES['{"gap": [0.0, 0.5]}', "ema", 1.0]
RISING = NAMES['{"end": 1000.0}', "ema", 0.001]
ANNEALED = NAMES['{"end": 0.0}', "ema", 1.0]
SHORT, LONG = NAMES['{"gap": [0.0, 0.25]}', "ema", 1.0], NAMES['{"gap": [0.5, 1.0]}', "ema", 1.0]


class Place(NamedTuple):
    """Where ways of using the deterministic tangent were compared."""

    data: str
    batch_size: int
    tables: tuple[str, ...]


PLANE = Place("mixture:2,8", 512, ("models", "tangent", "tangent_cells"))
SMALL = Place("mixture:2,8", 128, ("models", "tangent128"))
DEEP = Place("mixture:16,8", 128, ("dimensions", "dimensions_tangent"))
AGAIN = Place("mixture:16,8", 128, ("dimensions_confirm",))
"""As DEEP, with other seeds."""

LARGE = Place("mixture:64,8", 256, ("dimensions_64",))

QUALITIES = ("map_distance", "sliced_wasserstein")


@cache
def cell_rules(data: str, batch_size: int) -> dict[str, str]:
    """Names of `beta_by` whose cells hold what table `cells` says, with two digits."""
    rows = read("question", "cells").query("data == @data and batch_size == @batch_size")
    if rows.empty:
        return {}
    means = rows.groupby(["n", "r_low", "t_low"])["value"].mean().unstack("t_low").fillna(0)
    single, many = (means.loc[n].to_numpy() for n in sorted(rows["n"].unique()))
    named = {CELLS[0]: single, CELLS[1]: single.clip(0, 1), CELLS[2]: many.clip(0, 1)}
    return {json.dumps({"cells": values.round(2).tolist()}): name for name, values in named.items()}


@cache
def variants(quality: str, place: Place = PLANE) -> dict[str, pd.Series]:
    """A measure of every way of using the deterministic tangent, averaged weights, by seed."""
    models = pd.concat([read("question", name) for name in place.tables])
    final = models[(models["step"] == models["steps"]) & (models["weights"] == "ema")]
    final = final[final["batch_size"] == place.batch_size]
    is_density = final["times"].str.startswith("density")
    groups = final.groupby([final["beta_by"], "proxy", "beta", is_density.rename("density")])
    series = {key: group.set_index("seed")[quality].sort_index() for key, group in groups}
    names = NAMES | {(rule, "ema", 1.0): name for rule, name in cell_rules(place.data, place.batch_size).items()}
    own = {name: series[*key, False] for key, name in names.items() if (*key, False) in series}
    return own | {with_density(name): series[*key, True] for key, name in names.items() if (*key, True) in series}


def with_density(name: str) -> str:
    """Name of a variant that draws (r, t) from the optimal density."""
    return f"{name.removesuffix(' (corner)')}, optimal density"


def against(quality: str, name: str, base: str, place: Place = PLANE) -> Interval:
    """Paired ratio of two variants."""
    values = variants(quality, place)
    return ratio(values[name], values[base])


def deep(name: str, base: str, quality: str = "map_distance") -> Interval:
    """Paired ratio in 16 dimensions."""
    return against(quality, name, base, DEEP)


def variants_table(place: Place) -> str:
    rows = []
    for name in variants("map_distance", place):
        row = [name]
        for quality in QUALITIES:
            row.append(f"{variants(quality, place)[name].mean():.4f}")
            row += ["" if name == base else against(quality, name, base, place).text(3) for base in (ZERO, ONE)]
        rows.append(row)
    headings = ["tangent"]
    for short in ("map", "SW"):
        headings += [f"{short} distance", f"{short}: over beta = 0", f"{short}: over beta = 1"]
    return table(headings, rows)


def winners(place: Place) -> str:
    """Variants that beat both corners beyond their intervals in the map distance and in sliced Wasserstein."""
    pairs = [(quality, base) for quality in QUALITIES for base in (ZERO, ONE)]
    others = [name for name in variants("map_distance", place) if name not in (ZERO, ONE)]
    best = [name for name in others if all(against(quality, name, base, place).high < 1 for quality, base in pairs)]
    return "; ".join(best) or "none"


DIAGNOSTICS = ("velocity_error", "interval_defect")


@cache
def ways_correlation(diagnostic: str, quality: str, place: Place) -> Interval:
    """Rank correlation over all ways of training at a place of a diagnostic and a measure, by bootstrap over seeds."""
    a, b = (pd.DataFrame(variants(name, place)).to_numpy() for name in (diagnostic, quality))  # [seeds, ways]
    return bootstrap(len(a), lambda seeds: rank_correlation(a[seeds].mean(0), b[seeds].mean(0)))


def ways_table() -> str:
    """`ways_correlation` by place."""
    qualities = (*QUALITIES, "energy_distance")
    rows = []
    for text, place in (
        ("16 dimensions", DEEP),
        ("16 dimensions, new seeds", AGAIN),
        ("2 dimensions, batch 512", PLANE),
    ):
        ways = f"{len(variants('map_distance', place))}"
        for name in DIAGNOSTICS:
            texts = (ways_correlation(name, quality, place).text() for quality in qualities)
            rows.append([text, ways, name.replace("_", " "), *texts])
    return table(["", "ways", "diagnostic", *(quality.replace("_", " ") for quality in qualities)], rows)


def bias_table() -> str:
    """bias2 of e at beta = 1 by t - r: means over cells of (r, t) with the same distance, over seeds."""
    cells = read("question", "bias")
    cells = cells.assign(gap=cells["t_low"] - cells["r_low"])
    by_seed = cells.groupby(["gap", "seed"])["value"].mean().unstack()
    rows = [
        [f"{max(0, gap - 0.25):g} to {gap + 0.25:g}", student(values).text(5)] for gap, values in by_seed.iterrows()
    ]
    return table(["t - r", "bias2 of e"], rows)


def error_table() -> str:
    """Squared error of u by t - r, relative to beta = 0."""
    bins = [name for name in read("question", "models").columns if name.startswith("error_")]
    names = [name for name in variants("map_distance") if name != ZERO]
    rows = [[name, *(against(column, name, ZERO).text(3) for column in bins)] for name in names]
    return table(["tangent", *(name.removeprefix("error_").replace("_", " to ") for name in bins)], rows)


# 64 dimensions.

LARGE_GRIDS = ("dimensions_64", "dimensions_64_rates")


@cache
def large_models() -> pd.DataFrame:
    """Every model in 64 dimensions with a constant beta."""
    models = pd.concat([read("question", name) for name in LARGE_GRIDS])
    return models[models["beta_by"] == ""]


class LargeCell(NamedTuple):
    """A measure in one setting: logs by seed and beta."""

    batch_size: int
    learning_rate: float
    weights: str
    quality: str
    logs: pd.DataFrame

    @property
    def name(self) -> list[str]:
        weights = "averaged" if self.weights == "ema" else "raw"
        return [f"{self.batch_size:,}", f"{self.learning_rate:g}", weights, self.quality.replace("_", " ")]

    def ratio(self, beta: float, base: float) -> Interval:
        return Interval(*np.exp(student(self.logs[beta] - self.logs[base])))

    @property
    def has_inner(self) -> bool:
        """Whether 0.4 beats both corners beyond its intervals."""
        return self.ratio(0.4, 0.0).high < 1 and self.ratio(1.0, 0.4).low > 1

    @property
    def rules_out(self) -> bool:
        """Whether a corner beats 0.4 beyond its interval."""
        return self.ratio(0.4, 0.0).low > 1 or self.ratio(1.0, 0.4).high < 1


@cache
def large_cells() -> list[LargeCell]:
    groups = large_models().groupby(["batch_size", "learning_rate", "weights"])
    cells = [LargeCell(*key, quality, by_beta(part, quality)) for key, part in groups for quality in QUALITIES]
    return [cell for cell in cells if np.isfinite(cell.logs).all(axis=None)]  # raw weights have the map distance alone


def large_table() -> str:
    """Where the minimum over beta is in 64 dimensions, by setting and measure."""
    rows = []
    for cell in large_cells():
        start = f"{np.exp(cell.logs[0.0]).mean():.4f}"
        ratios = [cell.ratio(0.4, 0.0), cell.ratio(1.0, 0.0), cell.ratio(1.0, 0.4)]
        rows.append([*cell.name, start, *(r.text(3) for r in ratios), _best_interval(cell.logs).text()])
    headings = [
        "batch",
        "rate",
        "weights",
        "measure",
        "at beta = 0",
        "0.4 over 0",
        "1 over 0",
        "1 over 0.4",
        "best beta",
    ]
    return table(headings, rows)


def large_curve() -> str:
    """Both measures over those at beta = 0, averaged weights: for every beta, and from 1 to 0."""
    betas = sorted(key for key in large_models()["beta"].unique() if key)
    cells = [cell for cell in large_cells() if cell.weights == "ema" and len(cell.logs.columns) > 3]
    rows = [[f"beta = {beta:g}", *(cell.ratio(beta, 0.0).text(3) for cell in cells)] for beta in betas]
    rows.append([ANNEALED, *(against(cell.quality, ANNEALED, ZERO, LARGE).text(3) for cell in cells)])
    return table(["over beta = 0", *(cell.quality.replace("_", " ") for cell in cells)], rows)


def large_losses() -> pd.DataFrame:
    """Mean loss in each quarter of training: a row for each setting and model."""
    losses = pd.concat([read("question", f"{name}_loss") for name in LARGE_GRIDS])
    models = large_models().query("weights == 'ema'")
    rows = losses.merge(models[["file", "batch_size", "learning_rate", "beta", "seed", "steps"]], on="file")
    quarter = np.ceil(4 * rows["step"] / rows["steps"]).astype(int)
    keys = ["batch_size", "learning_rate", "beta", "seed"]
    return rows.groupby([*keys, quarter.rename("quarter")])["value"].mean().unstack()


def loss_table() -> str:
    """The loss by quarter of training, at three coefficients."""
    rows = []
    for (batch, rate, beta), part in large_losses().groupby(level=[0, 1, 2]):
        if beta in (0.0, 0.4, 1.0):
            growth = Interval(*np.exp(student(np.log(part[4] / part[1]))))
            means = [f"{value:.0f}" for value in part.mean()]
            rows.append([f"{batch:,}", f"{rate:g}", f"{beta:g}", *means, growth.text()])
    quarters = ["first quarter", "second", "third", "last"]
    return table(["batch", "rate", "beta", *quarters, "last over first"], rows)


# The figures.


def averaging_figure(axes: Sequence[Axes]) -> None:
    """Against n: what beta = 1 costs; against the predicted beta: the best one."""
    cells = averaging_cells("map_distance")
    for weights, marker, label in (("raw", "o", "raw weights"), ("ema", "s", "averaged weights")):
        own = [cell for cell in cells if cell.key[3] == weights]
        penalties = [Interval(*np.exp(student(cell.logs[1] - cell.logs[0]))) for cell in own]
        _points(axes[0], [cell.n for cell in own], penalties, marker, label)
        best = [_best_interval(cell.logs) for cell in own]
        _points(axes[1], [cell.predicted.mean() for cell in own], best, marker, label)
    axes[0].axhline(1, color="#666666", linewidth=0.8)
    axes[0].set(xscale="log", xlabel="samples averaged over, n", ylabel="distance at beta = 1 over that at 0")
    axes[1].plot([0, 1], [0, 1], color="#666666", linewidth=0.8)
    axes[1].set(xlabel="predicted beta", ylabel="best beta", xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    axes[0].legend()


def tangent_figure(axes: Sequence[Axes]) -> None:
    """Ratio to beta = 0 of every way of using the deterministic tangent, in 2 and in 16 dimensions."""
    names = [name for name in [*variants("map_distance"), *variants("map_distance", DEEP)] if name != ZERO]
    names = list(dict.fromkeys(names))
    styles = (("map_distance", "#0072B2", "o", -0.14), ("sliced_wasserstein", "#D55E00", "s", 0.14))
    for axis, place in zip(axes, (PLANE, DEEP), strict=True):
        for quality, color, marker, offset in styles:
            rows = [row for row, name in enumerate(names) if name in variants(quality, place)]
            ratios = [against(quality, names[row], ZERO, place) for row in rows]
            heights = np.array(rows) + offset
            axis.hlines(heights, [r.low for r in ratios], [r.high for r in ratios], color=color)
            axis.plot([r.value for r in ratios], heights, marker, color=color, label=quality.replace("_", " "))
        axis.axvline(1, color="#666666", linewidth=0.8)
        title = f"{place.data.removeprefix('mixture:').split(',')[0]} dimensions, batch {place.batch_size}"
        axis.set(title=title, xlabel="distance over that at beta = 0", yticks=range(len(names)))
        axis.invert_yaxis()
    axes[0].set_yticklabels(names)
    axes[1].set_yticklabels([])
    axes[1].legend(loc="center right", bbox_to_anchor=(1, 0.35))


def family_figure(axes: Sequence[Axes]) -> None:
    """Quality against variance, relative to MeanFlow, one color for each data set; and the rank correlations."""
    joined = predictions().join(outcomes().mean(axis=1).rename("outcome"), how="inner").reset_index()
    for data, part in joined.groupby("data"):
        part = part.set_index("method")
        relative = np.exp(part[["variance", "outcome"]] - part.loc["meanflow", ["variance", "outcome"]].astype(float))
        axes[0].plot(relative["variance"], relative["outcome"], "o", markersize=3.5, label=data)
    axes[0].set(xscale="log", yscale="log", xlabel="variance over MeanFlow's", ylabel="distance over MeanFlow's")
    axes[0].legend(fontsize=7)
    scores = rank_scores()
    for row, interval in enumerate(scores.values()):
        axes[1].plot([interval.low, interval.high], [row, row], color="#0072B2")
        axes[1].plot(interval.value, row, "o", color="#0072B2")
    axes[1].axvline(0, color="#666666", linewidth=0.8)
    axes[1].set(
        xlabel="rank correlation with quality", yticks=range(len(scores)), yticklabels=list(scores), xlim=(-1, 1)
    )
    axes[1].invert_yaxis()


def _points(axis: Axes, x: Sequence[float], intervals: Sequence[Interval], marker: str, label: str) -> None:
    color = {"o": "#0072B2", "s": "#D55E00"}[marker]
    for place, interval in zip(x, intervals, strict=True):
        axis.plot([place, place], [interval.low, interval.high], color=color)
    axis.plot(x, [interval.value for interval in intervals], marker, color=color, label=label)


def _best_interval(logs: pd.DataFrame) -> Interval:
    values, betas = logs.to_numpy(), logs.columns.to_numpy()
    return bootstrap(len(values), lambda seeds: best_beta(values[seeds], betas))


FIGURES: dict[str, tuple[Callable[[Sequence[Axes]], None], tuple[float, float]]] = {
    "question/averaging": (averaging_figure, (8.4, 3.6)),
    "question/tangent": (tangent_figure, (9.6, 5.4)),
    "family/ranking": (family_figure, (9.2, 3.8)),
}
"""Place below reports/ -> what draws two axes, and the size in inches."""


def draw(report: str) -> None:
    """Draw the figures of a report."""
    import matplotlib.pyplot as plt

    for place, (draw_axes, size) in FIGURES.items():
        if not place.startswith(f"{report}/"):
            continue
        figure, axes = plt.subplots(1, 2, figsize=size, layout="constrained")
        draw_axes(axes)
        figure.savefig(REPORTS / f"{place}.png", dpi=130, metadata={"Software": None})
        plt.close(figure)


# The text.


def judged(interval: Interval, null: float, digits: int = 3) -> str:
    """An interval in words: beyond the noise or within it."""
    place = "beyond the noise" if interval.excludes(null) else "within the noise"
    return f"{interval.text(digits)}, {place}"


class Evidence(NamedTuple):
    """What the four explanations rest on; ratios are of the map distance, at a batch of 512 where none is said."""

    slope: Interval
    rank: Interval
    penalty: Interval
    cost: Interval
    averaged: Interval
    averaged_128: Interval
    itself: Interval
    exact: Interval
    exact_128: Interval
    exact_over_averaged: Interval
    exact_over_averaged_128: Interval
    short: Interval
    long: Interval
    long_128: Interval
    half_128: Interval
    short_over_long: Interval
    orders: dict[tuple[str, str], Interval]


def evidence() -> Evidence:
    cells = averaging_cells("map_distance")

    def versus(name: str, base: str = ZERO, place: Place = PLANE) -> Interval:
        return against("map_distance", name, base, place)

    return Evidence(
        *regression(cells),
        penalty_slope(cells),
        penalty_on_prediction(cells),
        averaged=versus(ONE),
        averaged_128=versus(ONE, place=SMALL),
        itself=versus(SELF),
        exact=versus(EXACT),
        exact_128=versus(EXACT, place=SMALL),
        exact_over_averaged=versus(EXACT, ONE),
        exact_over_averaged_128=versus(EXACT, ONE, SMALL),
        short=versus(SHORT),
        long=versus(LONG),
        long_128=versus(LONG, place=SMALL),
        half_128=versus(HALF, place=SMALL),
        short_over_long=versus(SHORT, LONG),
        orders=order_table(("map_distance", "energy_distance"))[1],
    )


def explanations_table(found: Evidence) -> str:
    """The four explanations, what each predicts, and what was measured."""
    velocity, defect = (found.orders[name, "map_distance"] for name in DIAGNOSTICS)
    deep_velocity, deep_defect = (ways_correlation(name, "map_distance", DEEP) for name in DIAGNOSTICS)
    rows = [
        [
            "(a) batch averaging",
            "slope of the best beta on the predicted one: 1; the penalty of beta = 1 grows with n (above 0 per decade) "
            "and where a lower beta is predicted (rank correlation below 0)",
            f"slope {found.slope.text()}; penalty per decade of n {judged(found.penalty, 0)}; rank correlation of "
            f"penalty and prediction {judged(found.cost, 0, 2)}",
        ],
        [
            "(b) bias of the proxy",
            "the exact velocity has no penalty: at most 1 over beta = 0, and below 1 over averaged weights",
            f"16 dimensions: exact over beta = 0 {judged(deep(EXACT, ZERO), 1)}, averaged over beta = 0 "
            f"{judged(deep(ONE, ZERO), 1)}, exact over averaged {judged(deep(EXACT, ONE), 1)}; 2 dimensions, "
            f"batch 512: exact over beta = 0 {judged(found.exact, 1)}, exact over averaged "
            f"{judged(found.exact_over_averaged, 1)}; batch 128: {judged(found.exact_128, 1)}, and "
            f"{judged(found.exact_over_averaged_128, 1)}",
        ],
        [
            "(c) where the bias acts",
            "a tangent that is deterministic for long intervals alone costs quality, one for short intervals alone "
            "does not",
            f"16 dimensions: t - r above 0.5 over beta = 0 {judged(deep(LONG, ZERO), 1)}, below 0.25 "
            f"{judged(deep(SHORT, ZERO), 1)}, short over long {judged(deep(SHORT, LONG), 1)}; 2 dimensions, batch 512: "
            f"long over beta = 0 {judged(found.long, 1)}, short {judged(found.short, 1)}, short over long "
            f"{judged(found.short_over_long, 1)}; batch 128: t - r above 0.5 {judged(found.long_128, 1)}, below 0.5 "
            f"{judged(found.half_128, 1)}",
        ],
        [
            "(d) error at a point, quality along a path",
            "D_v does not order the betas as the distance to the one-step map does; D_s does",
            f"rank correlation with the map distance: 16 dimensions, {len(variants('map_distance', DEEP))} ways of "
            f"training: D_v {deep_velocity.text()}, D_s {deep_defect.text()}; 2 dimensions, over five betas: D_v "
            f"{velocity.text()}, D_s {defect.text()}",
        ],
    ]
    return table(["explanation", "predicts", "measured (map distance)"], rows)


GAINS = {
    "2d_beta_0": (PLANE, ZERO),
    "2d_beta_1": (PLANE, ONE),
    "16d_beta_0": (DEEP, ZERO),
    "16d_beta_1": (DEEP, ONE),
}
"""File of sweeps/densities -> where and with which tangent it was trained."""


def in_equal_time(quality: str, place: Place = AGAIN) -> Interval:
    """beta from 1 to 0 over beta = 0 trained for as much time, in 16 or 64 dimensions."""
    name = {AGAIN: "dimensions_time", LARGE: "dimensions_64_time"}[place]
    longer = read("question", name).query("weights == 'ema' and step == steps").set_index("seed")
    return ratio(variants(quality, place)[ANNEALED], longer[quality])


def recipe_table() -> str:
    """beta from 1 to 0, the reverse, and the optimal density, over beta = 0, by both measures."""
    density = with_density(ZERO)
    lines = [
        ("16 dimensions: beta from 1 to 0", ANNEALED, DEEP),
        ("the same, new seeds", ANNEALED, AGAIN),
        ("new seeds: beta from 0 to 1", RISING, AGAIN),
        ("16 dimensions: optimal density at beta = 0", density, DEEP),
        ("the same, new seeds", density, AGAIN),
        ("2 dimensions: beta from 1 to 0", ANNEALED, PLANE),
        ("64 dimensions: beta from 1 to 0", ANNEALED, LARGE),
    ]
    rows = [[text, *(against(quality, name, ZERO, at).text(3) for quality in QUALITIES)] for text, name, at in lines]
    equal, large = (
        [f"{text}, equal time: beta from 1 to 0", *(in_equal_time(quality, place).text(3) for quality in QUALITIES)]
        for text, place in (("new seeds", AGAIN), ("64 dimensions", LARGE))
    )
    return table(["over beta = 0", "map distance", "sliced Wasserstein"], [*rows[:2], equal, *rows[2:], large])


def gains_table() -> str:
    """What `mfdiag times` said of a density, and what training over it did."""
    rows = []
    for file, (place, name) in GAINS.items():
        said = read("question", f"times_{file}").set_index("quantity")
        both = said.loc[["predicted_gain", "measured_gain"], ["value", "ci_low", "ci_high"]]
        done = [against(quality, with_density(name), name, place).text(3) for quality in QUALITIES]
        label = f"{place.data.removeprefix('mixture:').split(',')[0]} dimensions, {name.removesuffix(' (corner)')}"
        rows.append([label, *(Interval(*gain).text(3) for gain in both.to_numpy()), *done])
    headings = ["trained", "variance falls by, predicted", "measured", "map distance, after over before", "SW distance"]
    return table(headings, rows)


def deep_numbers() -> dict[str, str]:
    """In 16 dimensions: the cost of a tangent that is deterministic for long or short intervals alone; D_v, D_s."""
    pairs = {"long_16d": (LONG, ZERO), "short_16d": (SHORT, ZERO), "short_over_long_16d": (SHORT, LONG)}
    in_map = {key: deep(*pair).text(3) for key, pair in pairs.items()}
    in_sw = {f"{key}_sw": deep(*pair, "sliced_wasserstein").text(3) for key, pair in pairs.items()}
    places = {"16d": DEEP, "again": AGAIN}
    orders = {
        f"{name}_{key}": ways_correlation(name, "map_distance", place).text()
        for key, place in places.items()
        for name in DIAGNOSTICS
    }
    return in_map | in_sw | orders


def question_text() -> str:
    """The page reports/question/README.md."""
    found = evidence()
    cells, energies = averaging_cells("map_distance"), averaging_cells("energy_distance")
    deep_cells = averaging_cells("map_distance", "mixture:16,8")
    slope_deep, rank_deep = regression(deep_cells)
    penalties = [student(cell.logs[1] - cell.logs[0]) for cell in cells]
    slope_energy, rank_energy = regression(energies)
    values = {
        "changes": f"{sum(abs(penalty.value) > np.log(1.04) for penalty in penalties)}",
        "above": f"{sum(penalty.low > 0 for penalty in penalties)}",
        "below": f"{sum(penalty.high < 0 for penalty in penalties)}",
        "cost_energy": penalty_on_prediction(energies).text(),
        "slope_energy": slope_energy.text(),
        "rank_energy": rank_energy.text(),
        "cells": f"{len(cells)}",
        "cells_energy": f"{len(energies)}",
        "best_low": f"{sum(_best_interval(cell.logs).value < 0.25 for cell in cells)}",
        "energy_high": f"{sum(_best_interval(cell.logs).value > 0.75 for cell in energies)}",
        "explanations": explanations_table(found),
        "averaging": averaging_table(cells),
        "averaging_energy": averaging_table(energies),
        "slope_16d": slope_deep.text(),
        "rank_16d": rank_deep.text(),
        "averaging_16d": averaging_table(deep_cells),
        "penalty_16d": judged(penalty_slope(deep_cells), 0),
        "predicted_below": f"{sum(cell.predicted.mean() < 0.9 for cell in cells)}",
        "optimum": optimum_table(),
        "variants": variants_table(PLANE),
        "variants_128": variants_table(SMALL),
        "variants_16d": variants_table(DEEP),
        "variants_again": variants_table(AGAIN),
        "exact_16d": deep(EXACT, ZERO).text(3),
        "averaged_16d": deep(ONE, ZERO).text(3),
        "exact_over_averaged_16d": deep(EXACT, ONE).text(3),
        "averaged_64d": against("map_distance", ONE, ZERO, LARGE).text(3),
        "bias": bias_table(),
        "errors": error_table(),
        "orders": order_table(("map_distance", "energy_distance"))[0],
        "cells_16d": f"{len(deep_cells)}",
        "tried": f"{len(variants('map_distance', DEEP)) - 2}",
        "gains": gains_table(),
        "recipe": recipe_table(),
        "ways": ways_table(),
        "ways_16d": f"{len(variants('map_distance', DEEP))}",
        "ways_again": f"{len(variants('map_distance', AGAIN))}",
        "quarter_16d": shallow(deep_cells),
        "time_64d": in_equal_time("sliced_wasserstein", LARGE).text(3),
        "time_64d_map": judged(in_equal_time("map_distance", LARGE), 1),
        "large": large_table(),
        "large_curve": large_curve(),
        "large_losses": loss_table(),
        "large_inner": f"{sum(cell.has_inner for cell in large_cells())}",
        "large_ruled_out": f"{sum(cell.rules_out for cell in large_cells())}",
        "large_cells": f"{len(large_cells())}",
        "winners": winners(PLANE),
        "winners_128": winners(SMALL),
        "winners_16d": winners(DEEP),
        "winners_again": winners(AGAIN),
    }
    values |= {
        name: interval.text(2 if name in ("slope", "rank", "cost") else 3)
        for name, interval in found._asdict().items()
        if isinstance(interval, Interval)
    }
    values |= {f"{a}_as_{b}": interval.text() for (a, b), interval in found.orders.items()}
    return filled("question", values | deep_numbers())


def method_table() -> str:
    """Quality of each method over that of MeanFlow, mean over data sets, beside what was predicted."""
    outcome, said = outcomes(), predictions()
    by_set = outcome.mean(axis=1).unstack("data")
    relative = by_set - by_set.loc["meanflow"]
    variance, cost = (said[name].unstack("data") for name in ("variance", "variance times cost"))
    cost = np.exp((cost - variance).mean(axis=1))
    variance = np.exp((variance - variance.loc["meanflow"]).mean(axis=1))
    order = relative.mean(axis=1).sort_values().index
    rows = []
    for method in order:
        interval = "" if method == "meanflow" else Interval(*np.exp(student(relative.loc[method]))).text()
        rank = f"{variance.rank()[method]:.0f}"
        rows.append([method, f"{cost[method]:.0f}", f"{variance[method]:.2f}", rank, interval or "1"])
    return table(["method", "cost", "variance over MeanFlow's", "rank by variance", "distance over MeanFlow's"], rows)


def score_table() -> str:
    every, flow = rank_scores(), rank_scores(NOT_ONE_STEP)
    rows = [[name, every[name].text(), flow[name].text()] for name in every]
    return table(["ranked by", "all methods", "without " + " and ".join(NOT_ONE_STEP)], rows)


NOT_ONE_STEP = ("flow_matching",)
"""Methods whose u is not meant for one step."""


def family_text() -> str:
    """The page reports/family/README.md."""
    scores, outcome = rank_scores(), outcomes()
    variance = scores["variance"]
    best = max(scores, key=lambda name: scores[name].value)
    methods, seeds = outcome.index.get_level_values("method").nunique(), outcome.shape[1]
    sets = outcome.index.get_level_values("data").nunique()
    strength = "" if abs(variance.value) > 0.5 else ", but weakly"
    verdict = (
        f"ranks the outcome better than chance{strength}"
        if variance.low > 0
        else f"ranks the outcome worse than chance{strength}"
        if variance.high < 0
        else "does not predict the outcome, as far as these runs can tell"
    )
    steps = read("family", "models")["steps"]
    values = {
        "methods": f"{methods}",
        "sets": f"{sets}",
        "seeds": f"{seeds}",
        "models": f"{outcome.size}",
        "variance": variance.text(),
        "verdict": verdict,
        "steps": f"{steps.min():,} to {steps.max():,} steps",
        "best": best,
        "best_score": scores[best].text(),
        "score_table": score_table(),
        "method_table": method_table(),
    }
    return filled("family", values)


def filled(page: str, values: dict[str, str]) -> str:
    """The prose of benchmarks/pages with its numbers."""
    template = (Path(__file__).parent / "pages" / f"{page}.md").read_text(encoding="utf-8")
    return template.format(**values)


PAGES = {"question": question_text, "family": family_text}


def write(folder: Path) -> None:
    """Write the page and the figures of a report from its tables.

    Args:
        folder: The report's folder below reports/.
    """
    report = folder.resolve().name
    if folder.resolve().parent != REPORTS.resolve() or report not in PAGES:
        raise ValueError(f"expected {' or '.join(f'reports/{name}' for name in PAGES)}, got {folder}")
    (folder / "README.md").write_text(PAGES[report](), encoding="utf-8")
    draw(report)
