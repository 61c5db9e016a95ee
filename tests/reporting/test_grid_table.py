"""Table `grid` from tables whose means, ratios and best coefficients are known."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mfdiag.reporting.grid_table import grid_table

BETAS, SEEDS = (0.0, 0.5, 1.0), (0, 1, 2)
DATASETS = ("two_moons", "pinwheel")
BEST = {"two_moons": 0.5, "pinwheel": 1.0}


def value_of(dataset: str, beta: float, seed: int) -> float:
    """Distances with a clear minimum at BEST, and an offset for each seed that pairing takes out."""
    return 0.03 + 0.02 * abs(beta - BEST[dataset]) + 0.01 * seed + 1e-5 * ((7 * seed + int(4 * beta)) % 3)


@pytest.fixture
def tables() -> dict[str, pd.DataFrame]:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("training", "sweep", "quality", "coefficient")}
    for dataset, beta, seed in product(DATASETS, BETAS, SEEDS):
        base = {"run": "grid", "times": "uniform", "dataset": dataset, "status": "ok", "value": 0.0}
        base["checkpoint_sha256"] = f"{dataset}{beta}{seed}"
        model = {**base, "beta": beta, "gamma": 0.0, "anchor": 0.5, "seed": seed}
        found["training"] += [{**model, "quantity": name} for name in ("loss", "steps")]
        nulls = {"layer": "all", **dict.fromkeys(("r_low", "r_high", "t_low", "t_high"))}
        for at in BETAS:
            variance = (100 + 10 * seed) * (2 - at) * (1 + beta)
            row = {**base, **nulls, "space": "gradient", "quantity": "variance", "gamma": 0.0, "seed": 0}
            found["sweep"] += [
                {**row, "beta": at, "value": variance},
                {**row, "beta": at, "value": 1e9, "space": "output"},
                {**row, "beta": at, "value": 1e9, "layer": "first"},
                {**row, "beta": at, "value": 1e9, "gamma": 1.0},
            ]
        metric = {"quantity": "value", "metric": "sliced_wasserstein", "nfe": 1, "weights": "ema", "features": None}
        found["quality"] += [
            {**base, **metric, "seed": 0, "value": value_of(dataset, beta, seed)},
            {**base, **metric, "seed": 0, "quantity": "mean_over_seeds", "value": 1e9},
        ]
        optimum = {"quantity": "optimum", "form": "gradient", "role": "tangent", "seed": 0}
        found["coefficient"] += [
            {**base, **nulls, **optimum, "batch_size": n, "value": 1.4 / (1 + n / 1000) + beta} for n in (1, 1000)
        ]
    return {name: pd.DataFrame(rows) for name, rows in found.items()}


def picked(frame: pd.DataFrame, quantity: str, **keys: Any) -> pd.DataFrame:
    kept = frame[frame["quantity"] == quantity]
    for name, value in keys.items():
        kept = kept[kept[name] == value]
    return kept


def test_means_are_over_seeds_with_students_t(tables: dict[str, pd.DataFrame]) -> None:
    (row,) = picked(grid_table(tables), "quality", dataset="pinwheel", beta=0.5).to_dict("records")
    values = [value_of("pinwheel", 0.5, seed) for seed in SEEDS]
    interval = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (row["value"], row["ci_low"], row["ci_high"]) == pytest.approx((np.mean(values), *interval))
    assert row["n_samples"] == 3


def test_variance_is_that_at_the_models_own_coefficient(tables: dict[str, pd.DataFrame]) -> None:
    frame = grid_table(tables)
    own = picked(frame, "variance", dataset="two_moons").set_index("beta")["value"]
    assert own.to_dict() == pytest.approx({0.0: 220, 0.5: 110 * 1.5 * 1.5, 1.0: 220})
    at_0 = picked(frame, "variance_at_0", dataset="two_moons").set_index("beta")["value"]
    assert at_0.to_dict() == pytest.approx({0.0: 220, 0.5: 165, 1.0: 110})
    ratio = picked(frame, "variance_ratio", beta=0.5)
    assert list(ratio["dataset"]) == ["two_moons", "pinwheel", "all"]
    np.testing.assert_allclose(ratio[["value", "ci_low", "ci_high"]], 2 / 2.25, err_msg="pairing leaves no spread")


def test_the_best_beta_and_those_that_do_not_differ_from_it(tables: dict[str, pd.DataFrame]) -> None:
    rows = picked(grid_table(tables), "best_beta").set_index("dataset")
    assert rows["value"].to_dict() == BEST
    assert (rows["ci_low"] == rows["value"]).all() and (rows["ci_high"] == rows["value"]).all()
    noisy = tables["quality"]
    near = noisy["checkpoint_sha256"].str.startswith("pinwheel0.5")
    noisy.loc[near, "value"] = [0.02, 1e9, 0.06, 1e9, 0.06, 1e9]  # as good as the best on the whole, but uneven
    rows = picked(grid_table(tables), "best_beta").set_index("dataset")
    assert tuple(rows.loc["pinwheel", ["value", "ci_low", "ci_high"]]) == (1.0, 0.5, 1.0)


def test_the_best_beta_is_by_distances_to_the_data_alone(tables: dict[str, pd.DataFrame]) -> None:
    quality = tables["quality"]
    names = ["many_step_distance", "energy_distance", "precision"]
    tables["quality"] = pd.concat([quality, *(quality.assign(metric=name) for name in names)], ignore_index=True)
    frame = grid_table(tables)
    assert set(picked(frame, "best_beta")["metric"]) == {"sliced_wasserstein", "energy_distance"}
    assert set(picked(frame, "quality")["metric"]) == {"sliced_wasserstein", *names}


def test_prediction_errors(tables: dict[str, pd.DataFrame]) -> None:
    frame = grid_table(tables)
    assert list(picked(frame, "optimum", batch_size=1)["value"]) == pytest.approx([1.4 / 1.001] * 2), "beta = 0 alone"
    rows = picked(frame, "prediction_error").set_index(["dataset", "batch_size"])["value"]
    expected = {("two_moons", 1): 0.5, ("pinwheel", 1): 0.0, ("two_moons", 1000): 0.2, ("pinwheel", 1000): 0.3}
    expected |= {("all", 1): 0.25, ("all", 1000): 0.25}
    assert rows.to_dict() == pytest.approx(expected)
    assert set(picked(frame, "optimum", batch_size=1)["status"]) == {"outside_unit_interval"}


@pytest.mark.parametrize("missing", ["sweep", "quality", "coefficient"])
def test_tables_may_be_missing(tables: dict[str, pd.DataFrame], missing: str) -> None:
    whole, part = grid_table(tables), grid_table({name: t for name, t in tables.items() if name != missing})
    assert 0 < len(part) < len(whole) and set(part["quantity"]) < set(whole["quantity"])
    assert grid_table({"training": tables["training"]}).empty


def test_one_seed_has_means_without_intervals(tables: dict[str, pd.DataFrame]) -> None:
    tables["training"] = tables["training"].query("seed == 0")
    rows = picked(grid_table(tables), "quality")
    assert rows["value"].notna().all() and rows["ci_low"].isna().all() and set(rows["n_samples"]) == {1}
