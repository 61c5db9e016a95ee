"""Metrics of pairs against slow twins, other libraries and closed forms; and intervals that cover."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paired import draws, measured
from scipy import stats

import mfdiag
from mfdiag.quality.metrics import metrics
from mfdiag.quality.metrics._neighbors import NEIGHBORS as K

PAIRED = [name for name, metric in metrics().items() if metric.paired]


def reach(points: np.ndarray) -> list[float]:
    return [sorted(np.linalg.norm(points - p, axis=1))[K] for p in points]


def precision(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean([any(np.linalg.norm(a - b) < r for b, r in zip(y, reach(y), strict=True)) for a in x]))


def density(x: np.ndarray, y: np.ndarray) -> float:
    return sum(np.linalg.norm(a - b) < r for a in x for b, r in zip(y, reach(y), strict=True)) / (K * len(x))


def coverage(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean([any(np.linalg.norm(a - b) < r for a in x) for b, r in zip(y, reach(y), strict=True)]))


def energy(x: np.ndarray, y: np.ndarray) -> float:
    return unbiased(lambda a, b: -float(np.linalg.norm(a - b)), x, y)


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
    return unbiased(lambda a, b: float(np.exp(-((a - b) ** 2).sum() / 2)), x, y)


def unbiased(kernel: Callable[[np.ndarray, np.ndarray], float], x: np.ndarray, y: np.ndarray) -> float:
    within = [np.mean([kernel(a, b) for a, b in itertools.permutations(points, 2)]) for points in (x, y)]
    return float(sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y]))


def wasserstein(x: np.ndarray, y: np.ndarray) -> float:
    orders = itertools.permutations(range(len(x)))
    return float(min(((x - y[list(order)]) ** 2).sum(1).mean() for order in orders) ** 0.5)


TWINS: dict[str, tuple[Callable[[np.ndarray, np.ndarray], float], int]] = {
    "precision": (precision, 12),
    "recall": (lambda x, y: precision(y, x), 12),  # the roles exchanged
    "density": (density, 12),
    "coverage": (coverage, 12),
    "energy_distance": (energy, 12),
    "mmd2": (mmd2, 12),
    "wasserstein_2": (wasserstein, 6),
}


def test_every_metric_of_pairs_has_a_twin() -> None:
    assert set(TWINS) == set(PAIRED)


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("seed", range(3))
def test_the_slow_twin(name: str, seed: int) -> None:
    twin, m = TWINS[name]
    x, y = draws(seed, m)
    assert measured(name, x, y) == pytest.approx(twin(x, y), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), angle=st.floats(0, 6), shift=st.floats(-3, 3), scale=st.floats(0.1, 10))
@pytest.mark.parametrize("name", PAIRED)
def test_only_shapes_count(name: str, seed: int, angle: float, shift: float, scale: float) -> None:
    """Moving and turning both samples changes nothing; a scale multiplies distances and leaves shares alone."""
    x, y = draws(seed)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = [scale * points @ turn + shift for points in (x, y)]
    factor = scale if name in ("energy_distance", "wasserstein_2") else 1
    assert measured(name, *moved, scale) == pytest.approx(factor * measured(name, x, y), rel=1e-7, abs=1e-7 * factor)


def test_wasserstein_of_a_shift_is_its_length() -> None:
    y = draws(0, 50)[1]
    assert measured("wasserstein_2", y[::-1] + np.array([0.3, -0.4]), y) == pytest.approx(0.5)


def test_energy_distance_is_scipys_in_one_dimension() -> None:
    """scipy keeps pairs of a point with itself and returns the root."""
    x, y = draws(1, 40, dim=1)
    with_self = [np.abs(points - points.T).mean() / 39 for points in (x, y)]  # what leaving them out adds
    expected = stats.energy_distance(x[:, 0], y[:, 0]) ** 2
    assert measured("energy_distance", x, y) == pytest.approx(expected - sum(with_self))


def truth_in_one_dimension(mean: float, std: float, scale: float) -> dict[str, float]:
    """Closed forms for N(mean, std^2) against N(0, 1)."""

    def absolute(m: float, s: float) -> float:
        return float(stats.foldnorm.mean(abs(m) / s, scale=s))  # E|N(m, s^2)|

    def kernel(m: float, variance: float) -> float:  # E exp(-N(m, variance)^2 / (2 h^2))
        total = scale**2 + variance
        return scale / total**0.5 * np.exp(-(m**2) / (2 * total))

    both = (1 + std**2) ** 0.5
    return {
        "energy_distance": 2 * absolute(mean, both) - absolute(0, 2**0.5 * std) - absolute(0, 2**0.5),
        "mmd2": kernel(0, 2 * std**2) + kernel(0, 2) - 2 * kernel(mean, 1 + std**2),
    }


def test_intervals_cover() -> None:
    """The closed form where there is one; else the mean over all seeds, since the truth depends on the subsamples."""
    frames = []
    closed: dict[str, list[float]] = {"energy_distance": [], "mmd2": []}
    for seed in range(40):
        prepared = mfdiag.prepare_quality("gaussian:1,0,1", metrics=PAIRED, subsample=48, seed=seed)
        frames.append(prepared.measure(lambda z: 0.4 + 1.3 * z).set_index("metric"))
        for metric, truth in truth_in_one_dimension(0.4, 1.3, prepared.metrics.subsamples[0].scale).items():
            closed[metric].append(truth)
    for metric in PAIRED:
        truths = closed.get(metric) or [np.mean([frame.value[metric] for frame in frames])] * len(frames)
        inside = [f.ci_low[metric] <= truth <= f.ci_high[metric] for f, truth in zip(frames, truths, strict=True)]
        assert 34 <= sum(inside) <= 40, metric


def test_equal_laws() -> None:
    """For m samples of each of two equal laws, density is 1 and coverage what counting gives (arXiv 2002.09797)."""
    m = 24
    prepared = mfdiag.prepare_quality("gaussian:3,0,1", metrics=["coverage", "density"], subsample=m)
    frame = prepared.measure(lambda z: z).set_index("metric")
    expected = 1 - np.prod([(m - 1 - k) / (2 * m - 1 - k) for k in range(K)])
    for metric, truth in (("coverage", expected), ("density", 1.0)):
        row = frame.loc[metric]
        assert abs(row.value - truth) < 4 * row.std_error and row.std_error < 0.05
