"""The loss against its plain twin, the whole Jacobian sample by sample, and stacked models against single ones."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mfdiag.flow.weighting import Weighting
from mfdiag.models.networks.dit import DiT
from mfdiag.models.networks.mlp import MLP
from mfdiag.training.loss import LossCoefficients, Params, TrainBatch, training_loss

LOSSES = list(
    itertools.product(
        [
            LossCoefficients(),
            LossCoefficients(0.0, 0.0),
            LossCoefficients(beta=1),
            LossCoefficients(gamma=0.3),
            LossCoefficients(0.4, 0.7),
            LossCoefficients(0.4, 0.7, 0.5),
        ],
        [Weighting(), Weighting(0.5, 0.01)],
    )
)


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return MLP(2, hidden=8, depth=2, num_classes=3).double()


@pytest.fixture
def batch() -> TrainBatch:
    generator = torch.Generator().manual_seed(1)
    x_t, v_c = torch.randn(2, 6, 2, dtype=torch.float64, generator=generator)
    r, t = torch.rand(6, 2, dtype=torch.float64, generator=generator).sort(dim=1).values.T
    return TrainBatch(x_t, v_c, r, t, t / 100, torch.arange(6) % 3)


def averaged(module: nn.Module) -> nn.Module:
    """Other weights for the average, so that the proxy is not the model's own velocity."""
    torch.manual_seed(5)
    other = MLP(2, hidden=8, depth=2, num_classes=3).double()
    assert other.state_dict().keys() == module.state_dict().keys()
    return other


def plain_loss(
    module: nn.Module, ema: nn.Module, batch: TrainBatch, point: LossCoefficients, weighting: Weighting
) -> Tensor:
    """docs/theory.md#plane, one sample at a time, with the whole Jacobian."""
    total = torch.zeros((), dtype=torch.float64)
    beta, gamma, anchor = (value or 0.0 for value in point)
    for i in range(len(batch.t)):
        x, v_c, r, t = batch.x_t[i : i + 1], batch.v_c[i : i + 1], batch.r[i : i + 1], batch.t[i : i + 1]
        assert batch.delta is not None and batch.labels is not None
        y, delta = batch.labels[i : i + 1], batch.delta[i : i + 1]
        vhat = ema(x, t, t, y).detach()
        tangent, target = v_c + beta * (vhat - v_c), v_c + gamma * (vhat - v_c)
        dx, dt = torch.autograd.functional.jacobian(lambda a, b, r=r, y=y: module(a, r, b, y)[0], (x, t))
        u = module(x, r, t, y)
        e = u + (t - r) * (dx[:, 0] @ tangent[0] + dt[:, 0])[None] - target
        square = (e**2).sum()
        total = total + square / (square.detach() + weighting.eps) ** weighting.p
        total = total + anchor * ((module(x, t - delta, t, y) - v_c) ** 2).sum()
    return total / len(batch.t)


def params_of(module: nn.Module) -> Params:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize(("point", "weighting"), LOSSES, ids=str)
def test_loss_and_gradient_equal_the_plain_twin(
    module: nn.Module, batch: TrainBatch, point: LossCoefficients, weighting: Weighting
) -> None:
    ema = averaged(module)
    expected = plain_loss(module, ema, batch, point, weighting)
    gradients = torch.autograd.grad(expected, list(module.parameters()))

    def ours(params: Params) -> Tensor:
        return training_loss(module, params, params_of(ema), batch, point, weighting)

    actual, value = torch.func.grad_and_value(ours)(params_of(module))
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
    for name, gradient in zip(actual, gradients, strict=True):
        torch.testing.assert_close(actual[name], gradient, rtol=1e-10, atol=1e-12)


def test_attention_and_stacked_models() -> None:
    """Losses of two stacked models under vmap are the losses of each."""
    torch.manual_seed(0)
    models = [DiT(1, size=4, width=8, depth=1, heads=2).double() for _ in range(2)]
    x_t, v_c = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    r, t = torch.rand(3, 2, dtype=torch.float64).sort(dim=1).values.T
    batch, point = TrainBatch(x_t, v_c, r, t), LossCoefficients(beta=0.5)

    def loss(params: Params) -> Tensor:
        return training_loss(models[0], params, params, batch, point, Weighting())

    stacked, _ = torch.func.stack_module_state(models)
    with sdpa_kernel(SDPBackend.MATH):
        together = torch.func.vmap(loss)(stacked)
        torch.testing.assert_close(together, torch.stack([loss(params_of(model)) for model in models]))
