"""Which training a network is a fixed point of, for one that is too small to satisfy any identity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import jvp

from mfdiag.diagnosis.field_probe import TARGETS
from mfdiag.diagnosis.measured import Measured
from mfdiag.diagnosis.update_probe import FACTOR, THROUGH, probe_updates
from mfdiag.flow.data.datasets import load_data
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import parse_times
from mfdiag.flow.weighting import Weighting

DRAWS = Draws(load_data("gaussian:3,0.5,0.5"), parse_times("uniform:r_ne_t=0.5"), seed=3)


def features(x: Tensor, r: Tensor, t: Tensor) -> Tensor:
    x, r, t = x / 3, r[:, None], t[:, None]
    return torch.cat([x, t * x, r * x, torch.sin(3 * x), t * torch.sin(3 * x), r * t * x, t * t * x], dim=1)


class Few(nn.Module):
    """u = W f(x, r, t) with few features."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return features(x, r, t).to(self.weights) @ self.weights


def settled(name: str) -> Few:
    """Where the mean update of a training vanishes: it is affine in the weights."""
    batch = DRAWS.batch(np.arange(100_000, 130_000))
    point, v, gap = (batch.x_t, batch.r, batch.t), batch.velocity, (batch.t - batch.r)[:, None]
    a, b, c = TARGETS["meanflow"] if name in (FACTOR, THROUGH) else TARGETS[name]
    one = torch.ones_like(batch.t)
    f, along = jvp(features, point, (a * v, c * one, b * one))
    residual = f + (1 if name == FACTOR else gap) * along  # times W, less v
    tested = residual if name == THROUGH else f
    return Few(torch.linalg.solve(tested.T @ residual, tested.T @ v))


def values(measured: list[Measured], quantity: str) -> dict[str, float]:
    return {str(entry.keys["target"]): float(entry.estimate.value) for entry in measured if entry.quantity == quantity}


def probed(network: nn.Module) -> list[Measured]:
    return list(probe_updates(DRAWS, {"raw": network}, 2048, 64, Weighting()))


@pytest.mark.parametrize("name", ["velocity_left_out", FACTOR, THROUGH])
def test_a_training_is_named_by_its_own_mean_update(name: str) -> None:
    own = {entry.quantity: entry.estimate for entry in probed(settled(name)) if entry.keys["target"] == name}
    assert own["update_coefficient"].low <= 1 <= own["update_coefficient"].high
    assert own["update_preference"].low > 0.8 and own["update_coefficient"].low > 0.7


def test_no_other_update_vanishes_where_meanflows_does() -> None:
    measured = probed(settled("meanflow"))
    assert max(values(measured, "update_preference").values()) < 0
    for entry in measured:
        if entry.quantity == "update_coefficient":
            assert entry.estimate.low <= 0 <= entry.estimate.high


def test_weights_that_no_training_leaves_in_place_say_nothing() -> None:
    moving = Few(settled("meanflow").weights.detach() * 1.5)
    assert not list(probe_updates(DRAWS, {"raw": moving}, 512, 10_000, Weighting()))


def test_the_set_of_weights_that_has_settled_better_counts() -> None:
    moving = Few(settled("meanflow").weights.detach() * 1.02)
    measured = probe_updates(DRAWS, {"raw": moving, "ema": settled("meanflow")}, 1024, 64, Weighting())
    assert {entry.keys["weights"] for entry in measured} == {"ema"}
