"""Uniform numbers in replicates: reproducible one by one, independent, evenly spread, and unbiased all the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from mfdiag.quality.intervals import estimate_from_replicates
from mfdiag.quality.points import REPLICATES, independent_uniforms, sobol_uniforms

Draw = Callable[[int, str, int, int, int], np.ndarray]
both = pytest.mark.parametrize("draw", [independent_uniforms, sobol_uniforms])


@both
def test_a_row_depends_on_its_own_number_alone(draw: Draw) -> None:
    long = draw(3, "noise", 5, 64, 3)
    np.testing.assert_array_equal(draw(3, "noise", 5, 17, 3), long[:17])
    assert long.shape == (64, 3) and long.min() > 0 and long.max() < 1
    for other in ((4, "noise", 5), (3, "data", 5), (3, "noise", 6)):
        assert abs(np.corrcoef(long.ravel(), draw(*other, 64, 3).ravel())[0, 1]) < 0.4


@both
def test_each_row_is_uniform_over_replicates(draw: Draw) -> None:
    """The first and a later row of 400 replicates: neither place nor scrambling leaves a pattern."""
    rows = np.stack([draw(0, "noise", b, 8, 2) for b in range(400)])
    for place in (0, 1, 7):
        for column in (0, 1):
            assert stats.kstest(rows[:, place, column], "uniform").pvalue > 1e-3


def test_even_rows_make_means_far_less_noisy() -> None:
    def error(draw: Draw) -> float:
        means = [np.exp(draw(0, "noise", b, 256, 2).sum(1)).mean() for b in range(REPLICATES)]
        estimate = estimate_from_replicates(np.array(means), 256 * REPLICATES)
        assert abs(estimate.value - (np.e - 1) ** 2) < 4 * estimate.std_error
        return float(estimate.std_error)

    assert error(sobol_uniforms) < error(independent_uniforms) / 20


def test_beyond_the_tabulated_dimensions_rows_are_independent_ones() -> None:
    np.testing.assert_array_equal(
        sobol_uniforms(0, "noise", 1, 3, 30_000), independent_uniforms(0, "noise", 1, 3, 30_000)
    )
