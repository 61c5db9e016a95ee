"""The distance to samples in many steps: nothing for the exact flow, and what Euler's steps give in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mfdiag
from mfdiag.errors import InputError
from mfdiag.models.networks.gaussian import GaussianAverageVelocity
from mfdiag.quality.metrics import MANY_STEPS

METRICS = ["many_step_distance"]


class Decay(nn.Module):
    """u = x for every r and t: x_0 = (1 - 1/n)^n x_1 in n steps."""

    def forward(self, x: Tensor, r: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        return x


def test_the_exact_average_velocity_agrees_with_itself() -> None:
    prepared = mfdiag.prepare_quality("gaussian:3,0.5,2", metrics=METRICS, subsample=16, dtype=torch.float64)
    frame = prepared.measure(GaussianAverageVelocity(0.5, 2.0, shape=(3,)), nfe=[1, 2])
    assert list(frame["nfe"]) == [1, 2] and frame["value"].abs().max() < 1e-8


@pytest.mark.parametrize("nfe", [2, 4])
def test_steps_of_a_linear_field(nfe: int) -> None:
    prepared = mfdiag.prepare_quality("gaussian:3,0,1", metrics=METRICS, subsample=64, dtype=torch.float64)
    row = prepared.measure(Decay(), nfe=[nfe]).iloc[0]
    few, many = (1 - 1 / nfe) ** nfe, (1 - 1 / MANY_STEPS) ** MANY_STEPS
    assert row["value"] == pytest.approx((few / many - 1) ** 2, rel=0.03) and row["n_samples"] == 32 * 64
    assert row["ci_low"] < (few / many - 1) ** 2 * (1 + 1 / 64) and row["std_error"] < 0.01 * row["value"]


def test_a_function_has_no_steps() -> None:
    prepared = mfdiag.prepare_quality(np.random.default_rng(0).normal(size=(50, 2)), metrics=METRICS, subsample=8)
    with pytest.raises(InputError, match="needs a network"):
        prepared.measure(lambda noise: noise)
