"""No step of a measurement mixes tensors of two devices: the numbers on a pretended device are those of the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import randomised
from pretended_device import DeviceTensor, pretended_device
from torch import Tensor, nn

import mfdiag
from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import FiniteData
from mfdiag.models.networks.dit import DiT
from mfdiag.models.networks.mlp import MLP

TOY = {"data": "eight_gaussians", "times": "uniform", "samples": 32}
LABELED = FiniteData("labeled", np.random.default_rng(0).standard_normal((12, 2)), np.arange(12) % 3)


def mlp(num_classes: int = 0) -> nn.Module:
    torch.manual_seed(0)
    return randomised(MLP(2, hidden=8, depth=1, num_classes=num_classes))


def dit() -> nn.Module:
    torch.manual_seed(0)
    return randomised(DiT(channels=1, width=12, depth=1, heads=2, num_classes=10), 0.05)


MEASUREMENTS: dict[str, Callable[[str], dict[str, pd.DataFrame]]] = {
    "sweep": lambda device: mfdiag.measure(mlp(), tables=["sweep"], beta=[0, 1], bins=(2, 2), device=device, **TOY),
    "differences": lambda device: mfdiag.measure(
        mlp(), tables=["sweep"], beta=[0, 1], derivative="difference", device=device, **TOY
    ),
    "proxy": lambda device: mfdiag.measure(
        mlp(),
        tables=["sweep"],
        beta=[0, 1],
        proxy="ema",
        proxy_model=mlp(),
        weighting="adaptive:1",
        device=device,
        **TOY,
    ),
    "guidance": lambda device: mfdiag.measure(
        mlp(num_classes=3),
        tables=["sweep"],
        guidance="meanflow:2,0.1",
        beta=[0],
        device=device,
        **TOY | {"data": LABELED},
    ),
    "quality": lambda device: {
        "quality": mfdiag.measure_quality(dit(), "digits", samples=64, subsample=8, nfe=[2], device=device)
    },
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_measurement_stays_on_its_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = MEASUREMENTS[name]("cpu")
    made: list[int] = []
    new = DeviceTensor.__new__
    monkeypatch.setattr(DeviceTensor, "__new__", lambda cls, inner: made.append(1) or new(cls, inner))
    with pretended_device() as device:
        actual = MEASUREMENTS[name](device)
    assert len(made) > 500, "the network runs on the device"
    assert actual.keys() == expected.keys()
    for table, frame in expected.items():
        np.testing.assert_allclose(actual[table]["value"], frame["value"], rtol=1e-3, atol=1e-6)


class Mixing(MLP):
    """Adds a tensor that is no buffer, so that it stays where it was made."""

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return super().forward(x, r, t, y) + torch.ones(2)


def test_a_tensor_of_another_device_is_noticed() -> None:
    with pretended_device() as device, pytest.raises(InputError, match="mixes devices"):
        mfdiag.measure(Mixing(2, hidden=8, depth=1), tables=["sweep"], device=device, **TOY)
