"""Sliced Wasserstein-1: scipy's distance direction by direction, closed forms, influences, and intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import mfdiag
from mfdiag.gradients.intervals import Estimate
from mfdiag.models.checkpoint import bundled, load_model
from mfdiag.quality import reference as reference_module
from mfdiag.quality.metrics import Reference
from mfdiag.quality.metrics.sliced_wasserstein import ANGLES, METRIC, directions


def distance(x: np.ndarray, y: np.ndarray, whole: bool = True) -> Estimate:
    """Samples x and data y, [B, n, d] each."""
    assert METRIC.pooled is not None
    reference = Reference(torch.as_tensor(y), whole, x.shape[0] * x.shape[1], seed=0)
    return METRIC.pooled(reference)(torch.as_tensor(x))


def slowly(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The mean over directions of scipy's distance, with `weights` on x."""
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    ways = directions(x.shape[1], seed=0).flatten(0, 1).numpy()
    return float(np.mean([stats.wasserstein_distance(x @ w, y @ w, weights) for w in ways]))


def blocks(seed: int, b: int, n: int, dim: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(b, n, dim))


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize(("n", "size"), [(8, 32), (8, 31), (12, 5)])
def test_scipys_distance_direction_by_direction(dim: int, n: int, size: int) -> None:
    x, y = 1.2 * blocks(0, 4, n, dim) + 0.3, blocks(1, 1, size, dim)
    assert float(distance(x, y).value) == pytest.approx(slowly(x, y), rel=1e-9)


def test_equal_points_are_no_distance_apart() -> None:
    y = blocks(0, 1, 40, 2)
    estimate = distance(y[0, ::-1].reshape(4, 10, 2).copy(), y)
    assert float(estimate.value) == pytest.approx(0, abs=1e-15)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), shift=st.tuples(st.floats(-2, 2), st.floats(-2, 2)), scale=st.floats(0.1, 5))
def test_moving_both_changes_nothing_and_scale_multiplies(seed: int, shift: tuple[float, float], scale: float) -> None:
    x, y = 1.3 * blocks(seed, 3, 5, 2), blocks(seed + 1, 1, 11, 2)
    plain, moved = distance(x, y), distance(scale * x + shift, scale * y + shift)
    assert float(moved.value) == pytest.approx(scale * float(plain.value), rel=1e-9)
    assert float(moved.std_error) == pytest.approx(scale * float(plain.std_error), rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(x=st.floats(-3, 3), y=st.floats(-3, 3))
def test_a_shift_in_the_plane_is_two_over_pi_of_its_length(x: float, y: float) -> None:
    """The mean of |cos| over all angles; what the quadrature over finitely many leaves is below 1e-3."""
    points, shift = blocks(0, 4, 8, 2), np.array([x, y])
    actual = float(distance(points + shift, points.reshape(1, 32, 2)).value)
    assert actual == pytest.approx(2 / np.pi * np.hypot(x, y), rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("dim", [3, 10, 100])
def test_directions_are_unit_vectors_at_right_angles_in_each_frame(dim: int) -> None:
    frames = directions(dim, seed=0)
    eye = torch.eye(frames.shape[1], dtype=torch.float64).expand(len(frames), -1, -1)
    torch.testing.assert_close(frames @ frames.mT, eye)
    assert len(frames) >= 8 and 400 < frames.shape[0] * frames.shape[1] <= 512
    assert directions(2, 0).shape == (1, ANGLES, 2)


@pytest.mark.parametrize("dim", [1, 2])
def test_standard_error_is_that_of_numerical_influences(dim: int) -> None:
    """Each block's influence by giving it a little more weight in scipy's distance, on both sides."""
    x, y = 1.2 * blocks(0, 4, 9, dim) + 0.3, blocks(1, 5, 7, dim)

    def influences(own: np.ndarray, other: np.ndarray) -> np.ndarray:
        b, n = own.shape[:2]
        step, influences = 1e-6, []
        for k in range(b):
            weights = np.full((b, n), (1 - step) / (b * n))
            weights[k] += step / n
            influences.append((slowly(own, other, weights.ravel()) - slowly(own, other)) / step)
        return np.array(influences)

    mine, theirs = influences(x, y), influences(y, x)
    assert float(distance(x, y.reshape(1, -1, dim)).std_error) == pytest.approx(mine.std(ddof=1) / 2, rel=1e-4)
    both = (mine.var(ddof=1) / 4 + theirs.var(ddof=1) / 5) ** 0.5
    assert float(distance(x, y, whole=False).std_error) == pytest.approx(both, rel=1e-4)


def gaussian_truth(shift: float, std: float, dim: int) -> float:
    """Between N(shift, std^2 I) and N(0, I): W1 along w is E|N(shift sum(w), (std - 1)^2)|, quantile by quantile."""
    if dim < 3:
        ways = directions(dim, 0).flatten(0, 1).numpy()
    else:
        ways = np.random.default_rng(0).normal(size=(200_000, dim))
        ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    width = abs(std - 1)
    return float(stats.foldnorm.mean(np.abs(shift * ways.sum(1)) / width, scale=width).mean())


@pytest.mark.parametrize(("dim", "samples", "seeds"), [(1, 2048, 30), (2, 1024, 30), (4, 256, 15)])
def test_intervals_cover_the_distance_of_gaussians(
    dim: int, samples: int, seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_module, "_DRAWN_POINTS", 2**10)
    truth, hits = gaussian_truth(0.3, 1.5, dim), 0
    for seed in range(seeds):
        prepared = mfdiag.prepare_quality(
            f"gaussian:{dim},0,1", metrics=["sliced_wasserstein"], samples=samples, seed=seed
        )
        row = prepared.measure(lambda z: 0.3 + 1.5 * z).iloc[0]
        hits += row.ci_low <= truth <= row.ci_high
    assert hits >= 0.86 * seeds, hits


def test_default_error_is_below_two_percent_of_the_distance() -> None:
    """On the bundled checkpoint, against four times as many samples of another seed."""
    model = load_model(bundled()).module
    chosen = {"metrics": ["sliced_wasserstein"], "nfe": [1]}
    row = mfdiag.measure_quality(model, "eight_gaussians", **chosen).iloc[0]
    truth = mfdiag.measure_quality(model, "eight_gaussians", samples=2**17, seed=1, **chosen).iloc[0]
    assert 0.03 < truth.value < 0.2 and abs(row.value / truth.value - 1) < 0.01
    assert row.std_error < 0.005 * row.value
