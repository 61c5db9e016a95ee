"""Figures of other people's models: huge, tiny, negative, many. `python tests/odd_results.py OUT` shows them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from matplotlib.axes import Axes
from odd_results import odd_results

from mfdiag.figures import figures

CASES = odd_results()
LONGEST_SIDE = 18  # inches


def curves_inside(axes: Axes) -> bool:
    """Whether the axes show every finite point of their curves; a logarithmic axis can have no others than positive."""
    low, high = sorted(axes.get_ylim())
    for line in axes.lines:
        y = np.asarray(line.get_ydata(), dtype=float)
        if line.get_transform() != axes.transData or len(y) < 3:
            continue
        finite = y[np.isfinite(y) & ((y > 0) | (axes.get_yscale() == "linear"))]
        if len(finite) and not (low <= finite.min() and finite.max() <= high):
            return False
    return True


def test_there_are_at_least_thirty() -> None:
    assert len(CASES) >= 30 and {name for _, name, _ in CASES} >= set(figures()) - {"training_course"}


@pytest.mark.parametrize("case", sorted({case for case, _, _ in CASES}))
def test_odd_results_are_drawn_within_their_axes(case: str) -> None:
    for name, frame in [(name, frame) for of_case, name, frame in CASES if of_case == case]:
        with warnings.catch_warnings():  # such as of NaN, or of a layout that collapsed
            warnings.simplefilter("error")
            figure = figures()[name].draw(frame)
            figure.draw_without_rendering()
        assert max(figure.get_size_inches()) <= LONGEST_SIDE, name
        for axes in figure.axes:
            if axes.get_visible():
                assert np.isfinite([*axes.get_xlim(), *axes.get_ylim()]).all(), name
                assert name == "plane" or curves_inside(axes), name  # the path of the optimum may leave the plane
                box = axes.get_tightbbox()
                assert box is not None and box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1, f"{name} is cut"
