"""Rows of means over training seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mfdiag.errors import InputError
from mfdiag.gradients.intervals import Estimate
from mfdiag.measures.parts.quality_rows import _braces, mean_over_seeds, quality_frame


def table(values: np.ndarray, std_error: float = 0.0) -> pd.DataFrame:
    """Sliced Wasserstein at NFE 1 and 2 of models seed=0, 1, ..., with the same error."""
    error = np.array(std_error)
    parts = []
    for seed, value in enumerate(values):
        found = Estimate(np.array(value), error, value - 2 * error, value + 2 * error, 64)
        common = dict.fromkeys(("checkpoint_sha256", "features"))
        common |= {"run": f"grid/seed={seed}", "checkpoint": f"grid/seed={seed}/model", "step": 5}
        common |= {"dataset": "rings", "seed": 0, "weights": "raw"}
        parts.append(quality_frame(common, [(nfe, "sliced_wasserstein", found) for nfe in (1, 2)]))
    return pd.concat(parts, ignore_index=True)


def test_the_mean_and_students_interval() -> None:
    values = np.array([0.1, 0.15, 0.11])
    found = mean_over_seeds(table(values))
    assert found["nfe"].tolist() == [1, 2] and set(found["quantity"]) == {"mean_over_seeds"}
    assert set(found["checkpoint"]) == {"grid/seed={0,1,2}/model"} and set(found["run"]) == {"grid/seed={0,1,2}"}
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    row = found.iloc[0]
    assert row.value == pytest.approx(0.12) and (row.step, row.status) == (5, "ok")
    assert (row.ci_low, row.ci_high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_intervals_cover_with_noise_that_models_share() -> None:
    """400 data sets with 4 models each, whose values differ by seed and by an error common to all of them."""
    rng = np.random.default_rng(0)
    one = table(np.zeros(4), 0.02).query("nfe == 1")
    frame = pd.concat([one.assign(dataset=str(k)) for k in range(400)])
    noise = rng.normal(scale=0.02, size=(400, 4)) + rng.normal(scale=0.02, size=(400, 1))
    values = 0.1 + noise.ravel()
    found = mean_over_seeds(frame.assign(value=values, ci_low=values - 0.04, ci_high=values + 0.04))
    covered = ((found["ci_low"] <= 0.1) & (found["ci_high"] >= 0.1)).mean()
    assert len(found) == 400 and 0.93 < covered < 0.995


def test_the_bias_of_the_models_lengthens_the_interval_of_their_mean() -> None:
    """Two models whose intervals are longer below by 0.03 and 0.01: that of the mean is by 0.02."""
    frame = table(np.array([0.2, 0.3]), 0.01)
    longer = frame.assign(ci_low=frame["ci_low"] - np.repeat([0.03, 0.01], 2))
    plain, biased = mean_over_seeds(frame).iloc[0], mean_over_seeds(longer).iloc[0]
    assert (biased.value, biased.std_error) == (plain.value, plain.std_error)
    assert biased.ci_low == pytest.approx(plain.ci_low - 0.02) and biased.ci_high == pytest.approx(plain.ci_high)


def test_a_bias_above_the_noise_is_not_ok() -> None:
    keys = dict.fromkeys(("run", "checkpoint", "dataset", "weights"), "x") | {"step": 5, "seed": 0}
    keys |= dict.fromkeys(("checkpoint_sha256", "features"))
    for low, status in ((0.15, "too_few_samples"), (0.17, "ok")):
        estimate = Estimate(*map(np.array, (0.2, 0.01, low, 0.22)), 64)
        assert quality_frame(keys, [(1, "sliced_wasserstein", estimate)])["status"].tolist() == [status]


def test_rows_of_means_are_not_averaged_again_and_one_model_is_no_mean() -> None:
    frame = table(np.array([0.1, 0.2]))
    both = pd.concat([frame, mean_over_seeds(frame)])
    pd.testing.assert_frame_equal(mean_over_seeds(both), mean_over_seeds(frame))
    with pytest.raises(InputError, match="at least two models, got 1"):
        mean_over_seeds(table(np.array([0.1])))


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_a_model_without_a_finite_value_is_not_left_out_of_the_mean(lost: float) -> None:
    frame = table(np.array([0.1, 0.2, lost]), 0.01)
    frame.loc[(frame["nfe"] == 2) & (frame["status"] != "ok"), ["value", "std_error", "status"]] = 0.3, 0.01, "ok"
    means = mean_over_seeds(frame)
    assert means["status"].tolist() == ["nonfinite", "ok"]
    assert means.loc[0, ["value", "std_error", "ci_low", "ci_high"]].isna().all()
    assert means.loc[1, "value"] == pytest.approx(0.2) and np.isfinite(means.loc[1, "ci_high"])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a"], "a"),
        (["s1/m", "s2/m"], "s{1,2}/m"),
        (["s1", "s11"], "s1{,1}"),
        (["aa", "a"], "a{a,}"),
        (["x", "y"], "{x,y}"),
    ],
)
def test_braces_spell_out_every_name(names: list[str], expected: str) -> None:
    assert _braces(names) == expected
