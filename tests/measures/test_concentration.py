"""How a few samples dominate: known shares, tails of known index, and coverage of the intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mfdiag.flow.data.datasets import GaussianData
from mfdiag.gradients.intervals import skewed_interval
from mfdiag.measures.parts.concentration import (
    heaviest_tail,
    largest_samples,
    tail_index,
    tail_status,
    top_share,
    top_share_status,
    variance_tails,
)

REPEATS = 400
NORMAL = GaussianData(1, 0.0, 1.0)
LEAST, MOST = (stats.binom.ppf(q, REPEATS, p) / REPEATS for q, p in ((0.001, 0.93), (0.999, 0.97)))


def test_top_share() -> None:
    for values, expected in (
        (np.ones(1000), 0.01),
        (np.r_[np.zeros(99), 5.0], 1),
        (np.r_[np.ones(199), 201.0], (201 + 1) / 400),
        (np.r_[np.ones(149), 2.0], (2 + 0.5) / 151),
        (np.r_[np.ones(9), 11.0], 0.1 * 11 / 20),
    ):
        assert top_share(values).value == pytest.approx(expected)


@pytest.mark.parametrize("statistic", ["share", "index"])
@pytest.mark.parametrize("degrees", [5, 30])
def test_intervals_of_concentration_cover(degrees: float, statistic: str) -> None:
    """Squared norms of Student t vectors; the truth is of 1,000 times as many, the width within 1.6 of an oracle's."""
    rng = np.random.default_rng(degrees)

    def norms(n: int) -> np.ndarray:
        return (rng.standard_t(degrees, (n, 4)) ** 2).sum(1)

    function = top_share if statistic == "share" else tail_index
    truth = float(function(norms(2_000_000)).value)
    estimates = [function(norms(2000)) for _ in range(REPEATS)]
    covered = np.mean([e.low <= truth <= e.high for e in estimates])
    print(f"covers {covered:.1%}")
    assert LEAST <= covered <= MOST
    values, widths = np.array([(float(e.value), float(e.high - e.low)) for e in estimates]).T
    assert np.median(widths) <= 1.6 * 2 * 1.96 * values.std()


def test_heavy_tails_are_not_ok() -> None:
    """Squared norms with the tail index that is given: at 1 never ok, at 4 always; too few do not tell."""
    rng = np.random.default_rng(0)
    for n in (512, 4096):
        heavy = [tail_status(1 + rng.pareto(1.0, n)) for _ in range(100)]
        light = [tail_status(1 + rng.pareto(4.0, n)) for _ in range(100)]
        assert set(heavy) == {"heavy_tail"} and set(light) == {None}
    assert tail_status(1 + rng.pareto(4.0, 256)) == "too_few_samples"
    assert tail_status(np.zeros(256)) is None  # no gradient at all has no tail
    assert top_share_status(1 + rng.pareto(4.0, 1000), NORMAL) == "too_few_samples"
    assert top_share_status(1 + rng.pareto(4.0, 4000), NORMAL) is None


@pytest.mark.parametrize("alpha", [1.5, 3.0])
def test_hill_finds_the_index_of_a_pareto_tail(alpha: float) -> None:
    """Each estimate has relative error 1 / sqrt(k), with k the largest 5 %."""
    values = 1 + np.random.default_rng(0).pareto(alpha, size=(100, 4000))
    found = np.mean([1 / tail_index(one).value for one in values])
    assert found == pytest.approx(1 / alpha, rel=4 / (200 * 100) ** 0.5)


def test_the_fewest_samples_that_tell_a_tail() -> None:
    light = 1 + np.random.default_rng(3).pareto(4.0, 2000)
    assert tail_status(light[:500]) is None and tail_status(light[:499]) == "too_few_samples"
    assert top_share_status(light, NORMAL) is None and top_share_status(light[:1999], NORMAL) == "too_few_samples"


def test_the_interval_of_a_tail_index_is_students_on_the_logarithm() -> None:
    values = np.arange(1.0, 101) ** 2  # the largest five are 96^2 to 100^2, over a threshold of 95^2
    excesses = 2 * np.log(np.arange(96.0, 101) / 95)
    actual, index = tail_index(values), 1 / excesses.mean()
    relative = excesses.std(ddof=1) / 5**0.5 * index
    ends = index * np.exp(np.array([-1, 1]) * stats.t.ppf(0.975, 4) * relative)
    assert (actual.value, actual.std_error) == pytest.approx((index, index * relative))
    assert (actual.low, actual.high) == pytest.approx(tuple(ends)) and actual.n_samples == 100
    assert tail_index(np.arange(1.0, 11)).value == pytest.approx(2 / (np.log(9 / 8) + np.log(10 / 8)))  # two at least


def test_the_interval_of_a_share_is_that_of_its_influences() -> None:
    """What each sample contributes: its part above the edge, and what it takes from the share by adding to the sum."""
    norms = np.random.default_rng(1).exponential(size=250)
    actual = top_share(norms)
    edge = np.sort(norms)[-3]  # the largest two and a half samples
    influence = (np.maximum(norms - edge, 0) + 0.01 * edge - float(actual.value) * norms) / norms.mean()
    expected = skewed_interval(float(actual.value), influence)
    np.testing.assert_allclose(np.array(actual, float), np.array(expected, float))
    assert actual.low < actual.value < actual.high


def test_the_worst_of_several_gradients_decides() -> None:
    rng = np.random.default_rng(0)
    light, heavy = 1 + rng.pareto(4.0, (2, 1000)), 1 + rng.pareto(1.0, 1000)
    assert heaviest_tail(light.T, NORMAL) is None
    assert heaviest_tail(np.stack([light[0], heavy, light[1]], 1), NORMAL) == "heavy_tail"
    assert set(variance_tails(light.T, NORMAL, 5.0)) == {"heavy_tail"}, "held to a larger index"


def test_the_largest_samples_of_each_model() -> None:
    """By estimator and step, in the order in which they come; the share is of the sum over all samples of both."""
    keys = {"checkpoint": "a", "dataset": "d", "proxy": None, "times": "uniform"}
    rows = [
        {**keys, "step": step, "estimator": estimator, "quantity": quantity, "index": k, "value": value}
        for step, estimator, values in ((2, "y", [1, 5, 2]), (1, "x", [4, 4, 8]), (2, "x", [7, 0, 3]))
        for quantity in ("loss", "grad_norm2")
        for k, value in enumerate(values if quantity == "grad_norm2" else [9.0, 9.0, 9.0])
    ]
    worst = largest_samples(pd.DataFrame(rows), 2)
    assert (worst["quantity"] == "grad_norm2").all()
    found = worst[["step", "estimator", "index", "value", "share"]].to_numpy().tolist()
    assert found == [
        [2, "y", 1, 5.0, 5 / 8],
        [2, "y", 2, 2.0, 2 / 8],
        [1, "x", 2, 8.0, 1 / 2],
        [1, "x", 0, 4.0, 1 / 4],
        [2, "x", 0, 7.0, 7 / 10],
        [2, "x", 2, 3.0, 3 / 10],
    ]
    many = pd.concat([pd.DataFrame(rows).assign(value=float(k)) for k in range(3)], ignore_index=True)
    assert len(largest_samples(many)) == 15, "five of each unless told"


def test_values_that_are_equal_or_zero_have_no_tail_to_fit() -> None:
    """No excess over the threshold: an infinite index, and light. A threshold of zero: too few to tell."""
    assert tail_index(np.ones(1000)).value == np.inf and tail_status(np.ones(1000)) is None
    few = np.r_[np.zeros(950), 1 + np.random.default_rng(0).pareto(4.0, 50)]
    assert np.isnan(tail_index(few).low) and tail_status(few) == "too_few_samples"
    few[0] = 1.0
    assert np.isfinite(tail_index(few).value) and tail_status(few) is None
