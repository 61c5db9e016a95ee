"""Memorization against its definition, on models that copy, that draw anew and that do neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

import mfdiag
from mfdiag.errors import InputError
from mfdiag.quality.metrics import Reference
from mfdiag.quality.metrics.memorization import METRIC


def draws(seed: int, count: int) -> torch.Tensor:
    return torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def measured(samples: torch.Tensor, data: torch.Tensor, held_out: torch.Tensor) -> Any:
    assert METRIC.pooled is not None
    return METRIC.pooled(Reference(data[None], True, len(samples), 0, held_out))(samples.reshape(32, -1, 3))


def test_it_is_the_statistic_of_mann_and_whitney() -> None:
    x, y, h = draws(0, 320), draws(1, 50), draws(2, 70)
    x[:5] = y[:5]  # copies
    h[:2] = y[:2]  # ties between the distances 0
    near = [torch.cdist(points, y).amin(1).numpy() for points in (x, h)]
    expected = mannwhitneyu(near[1], near[0]).statistic / (len(x) * len(h))
    assert float(measured(x, y, h).value) == pytest.approx(expected, abs=1e-12)


def test_copies_new_draws_and_far_points() -> None:
    y, h = draws(1, 400), draws(2, 200)
    copies = measured(y.repeat(2, 1)[:640], y, h)
    assert copies.value == 1 and copies.low > 0.99
    far = measured(draws(3, 640) + 20, y, h)
    assert far.value == 0


def test_the_interval_holds_one_half_for_new_draws() -> None:
    """The two sources of noise count: samples and held-out data. The training data are those of the model."""
    hits = []
    for seed in range(60):
        y = draws(3 * seed, 100)
        estimate = measured(draws(3 * seed + 1, 640), y, draws(3 * seed + 2, 192))
        hits.append(float(estimate.low) <= 0.5 <= float(estimate.high))
    assert np.mean(hits) >= 0.85  # 95 % less four standard errors of 60 draws


def test_what_it_needs(tmp_path: Path) -> None:
    points = draws(0, 100).numpy()
    with pytest.raises(InputError, match="pass --held-out"):
        mfdiag.prepare_quality(points, metrics=["memorization"])
    with pytest.raises(InputError, match=r"at least 32 held-out samples of shape \[3\]"):
        mfdiag.prepare_quality(points, held_out=draws(1, 40).numpy()[:, :2])
    with pytest.raises(InputError, match="closed form"):
        mfdiag.prepare_quality("gaussian:3,0,1", held_out=points)
    prepared = mfdiag.prepare_quality(points, held_out=draws(1, 64).numpy(), samples=64, subsample=8)
    frame = prepared.measure(lambda noise: noise)
    row = frame[frame["metric"] == "memorization"].iloc[0]
    assert row["ci_low"] <= 0.5 <= row["ci_high"]
