"""Sentences about a grid of models."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from mfdiag.reporting import findings
from mfdiag.reporting.sentences import change, is_measurable, not_measurable


def row(quantity: str, value: float, low: float, high: float, **keys: Any) -> dict[str, Any]:
    nulls = dict.fromkeys(("beta", "metric", "nfe", "weights", "batch_size"))
    estimate = {"quantity": quantity, "value": value, "ci_low": low, "ci_high": high, "n_samples": 3, "status": "ok"}
    return {"dataset": "moons", **nulls, **estimate, **keys}


def grid(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(rows))


SAMPLES = {"metric": "sliced_wasserstein", "nfe": 1, "weights": "ema"}


def with_best(low: float, high: float, **keys: Any) -> pd.DataFrame:
    means = [row("quality", 0.03 + 0.01 * beta, 0.02, 0.04, beta=beta, **SAMPLES) for beta in (0, 0.5, 1)]
    return grid(*means, row("best_beta", 0, low, high, **SAMPLES, **keys))


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0, 1, "lowest at beta = 0, but no beta differs significantly."),
        (0, 0.5, "lowest at beta = 0, but no beta from 0 to 0.5 differs significantly."),
        (0, 0, "lowest at beta = 0, and every other beta is significantly worse."),
    ],
)
def test_the_best_beta_is_compared_with_the_others(low: float, high: float, text: str) -> None:
    ((subject, (sentence,)),) = findings({"grid": with_best(low, high)})
    assert subject == "moons" and sentence.endswith(text)
    assert "at NFE 1 with ema weights is 0.0300 [0.0200, 0.0400] at beta = 0 and" in sentence


def test_one_seed_compares_nothing() -> None:
    ((_, (sentence,)),) = findings({"grid": with_best(0, 1, n_samples=1)})
    assert sentence.endswith("lowest at beta = 0, a difference not measurable with 1 seed.")


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        ((2.0, 1.6, 2.5), "lowers the gradient variance by 50.0 % [37.5 %, 60.0 %]."),
        ((0.967, 0.95, 0.98), "raises the gradient variance by 3.4 % [2.0 %, 5.3 %]."),
        ((20.0, 16.0, 25.0), "divides the gradient variance by 20.0 [16.0, 25.0]."),
        ((0.05, 0.04, 0.0625), "multiplies the gradient variance by 20.0 [16.0, 25.0]."),
        ((1.2, 0.9, 1.5), "has an effect on the gradient variance that is not measurable with 3 seeds."),
        ((5.0, 1.1, 300.0), "has an effect on the gradient variance that is not measurable with 3 seeds."),
    ],
)
def test_effects_have_a_direction_or_are_not_measurable(ratio: tuple[float, float, float], text: str) -> None:
    frame = grid(row("variance_ratio", *ratio, beta=1))
    assert findings({"grid": frame})[0].sentences == [f"Training at beta = 1 instead of 0 {text}"]


def test_over_data_sets_only_what_is_measurable_has_a_number() -> None:
    ratios = [
        row("quality_ratio", value, value - 0.1, value + 0.1, beta=beta, dataset="all", **SAMPLES)
        for beta, value in ((0.2, 0.95), (0.6, 0.8), (1.0, 1.05))
    ]
    errors = [
        row("prediction_error", 0.3, low, 0.5, batch_size=n, dataset="all", **SAMPLES)
        for n, low in ((1, -0.1), (4096, 0.1))
    ]
    ((subject, (change_, error)),) = findings({"grid": grid(*ratios, *errors)})
    assert subject == "all data sets"
    assert change_ == (
        "Change of sliced Wasserstein-1 at NFE 1 with ema weights relative to beta = 0: −20.0 % [−30.0 %, −10.0 %] at "
        "beta = 0.6; not measurable with 3 data sets at beta = 0.2, 1."
    )
    assert error.endswith("0.300 [0.100, 0.500] for n = 4,096; not measurable with 3 data sets for n = 1.")
    ((_, (nothing,)),) = findings({"grid": grid(ratios[0])})
    assert nothing.endswith("relative to beta = 0: not measurable with 3 data sets at any beta.")


def test_predictions_by_batch_size() -> None:
    frame = grid(row("optimum", 1.2, 1.1, 1.3, batch_size=1), row("optimum", 0.1, -0.5, 0.7, batch_size=512_000))
    assert findings({"grid": frame})[0].sentences == [
        "The models trained at beta = 0 predict an optimal beta of 1.20 [1.10, 1.30] for n = 1, not measurable with "
        "3 seeds for n = 512,000."
    ]


def test_doubt_stands_beside_the_number() -> None:
    doubtful = pd.Series(row("variance_ratio", 2.0, 1.6, 2.5, status="heavy_tail"))
    assert change(doubtful, "it").endswith("60.0 %] (heavy_tail)") and is_measurable(doubtful, 1)
    assert not_measurable(doubtful) == "not measurable with 3 samples (heavy_tail)"
    assert is_measurable(pd.Series(row("optimum", 1.0, float("nan"), float("nan"))), 0), "no interval was asked for"
