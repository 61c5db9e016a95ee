"""Replaced parts of released networks: the same values, and the derivatives that the originals lack."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.func import jvp

from mfdiag.models.cards.released import flow_anchored, from_targets, improved_meanflow, rotated

TABLE = torch.polar(torch.ones(5, 4), torch.rand(5, 4, generator=torch.Generator().manual_seed(1)))


def by_pairs(x: Tensor) -> Tensor:
    """Every pair of coordinates turned on its own."""
    turned = x.clone()
    for token in range(5):
        for k, turn in enumerate(TABLE[token]):
            a, b = x[:, token, :, 2 * k], x[:, token, :, 2 * k + 1]
            turned[:, token, :, 2 * k] = a * turn.real - b * turn.imag
            turned[:, token, :, 2 * k + 1] = a * turn.imag + b * turn.real
    return turned


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pairs_are_turned(dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, 2, 8).to(dtype)
    result = rotated(x, TABLE)
    assert result.dtype == dtype
    torch.testing.assert_close(result, by_pairs(x.double()).to(dtype))


def test_the_rotation_has_a_derivative_in_both_modes() -> None:
    """It is linear, so its tangent is itself, and orthogonal, so its gradient is its inverse."""
    x, dx = torch.randn(2, 3, 5, 2, 8, dtype=torch.float64)
    torch.testing.assert_close(jvp(lambda x: rotated(x, TABLE), (x,), (dx,))[1], rotated(dx, TABLE))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((rotated(leaf, TABLE) * rotated(dx, TABLE)).sum(), leaf)
    torch.testing.assert_close(gradient, dx, rtol=1e-6, atol=1e-6)


def test_improved_meanflow_is_the_repositorys_network_with_that_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    package, code = ModuleType("models"), ModuleType("models.imfDiT")
    code.imfDiT_B_2 = nn.Linear  # type: ignore[attr-defined]
    code.apply_rotary_pos_emb = None  # type: ignore[attr-defined]
    package.imfDiT = code  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "models", package)
    monkeypatch.setitem(sys.modules, "models.imfDiT", code)
    network = improved_meanflow("imfDiT_B_2", in_features=2, out_features=3)
    assert isinstance(network, nn.Linear) and network.weight.shape == (3, 2)
    assert code.apply_rotary_pos_emb is rotated  # type: ignore[attr-defined]


def test_from_targets_makes_what_is_nested_first() -> None:
    head = {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2}
    made = from_targets(_target_="types.SimpleNamespace", head=head, sizes={"depth": 1})
    assert isinstance(made.head, nn.Linear) and made.head.weight.shape == (2, 3) and made.sizes == {"depth": 1}


def test_flow_anchored_has_one_time_for_the_point_and_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Recording(nn.Module):
        def forward(self, x: Tensor, t: Tensor, r: None, y: Tensor) -> Tensor:
            assert r is None
            return x + t[:, None] + y[:, None]

    package, code = ModuleType("ldit"), ModuleType("ldit.lightningdit")
    code.LightningDiT_XL_1 = Recording  # type: ignore[attr-defined]
    package.lightningdit = code  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ldit", package)
    monkeypatch.setitem(sys.modules, "ldit.lightningdit", code)
    t, r = torch.tensor([0.25, 0.25]), torch.tensor([1.0, 0.25])
    output = flow_anchored("LightningDiT_XL_1")(torch.zeros(2, 1), t, r, torch.zeros(2))
    assert output[:, 0].tolist() == [0.25, 1.75]
