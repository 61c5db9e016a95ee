"""Loss and update against plain twins: finite coordinates' Jacobians sample by sample, and torch's own Adam."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from mfdiag.models.dit import DiT
from mfdiag.models.mlp import MLP
from mfdiag.training.loss import Batch, Params, loss_of, start, update
from mfdiag.training.spec import Anchor, Loss, TrainSpec

ANCHOR = Anchor(coefficient=0.5, delta_max=0.01)
LOSSES = [
    Loss(beta=beta, gamma=gamma, weighting=weighting, anchor=anchor)
    for (beta, gamma), weighting, anchor in itertools.product(
        [(0, 0), (1, 0), (0.4, 0.7)], ["none", "adaptive:0.5,0.01"], [None, ANCHOR]
    )
]


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return MLP(2, hidden=8, depth=2, num_classes=3).double()


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    x_t, v_c = torch.randn(2, 6, 2, dtype=torch.float64, generator=generator)
    r, t = torch.rand(6, 2, dtype=torch.float64, generator=generator).sort(dim=1).values.T
    return Batch(x_t, v_c, r, t, t / 100, torch.arange(6) % 3)


def averaged(module: nn.Module) -> nn.Module:
    """Other weights for the average, so that the proxy is not the model's own velocity."""
    torch.manual_seed(5)
    other = MLP(2, hidden=8, depth=2, num_classes=3).double()
    assert other.state_dict().keys() == module.state_dict().keys()
    return other


def plain_loss(module: nn.Module, ema: nn.Module, batch: Batch, loss: Loss) -> Tensor:
    """Theory, section 2, one sample at a time, with the whole Jacobian."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(batch.t)):
        x, v_c, r, t = batch.x_t[i : i + 1], batch.v_c[i : i + 1], batch.r[i : i + 1], batch.t[i : i + 1]
        assert batch.delta is not None and batch.labels is not None
        y, delta = batch.labels[i : i + 1], batch.delta[i : i + 1]
        vhat = ema(x, t, t, y).detach()
        tangent, target = v_c + loss.beta * (vhat - v_c), v_c + loss.gamma * (vhat - v_c)
        dx, dt = torch.autograd.functional.jacobian(lambda a, b, r=r, y=y: module(a, r, b, y)[0], (x, t))
        u = module(x, r, t, y)
        e = u + (t - r) * (dx[:, 0] @ tangent[0] + dt[:, 0])[None] - target
        square = (e**2).sum()
        if loss.weighting != "none":
            square = square / (square.detach() + 0.01) ** 0.5
        total = total + square
        if loss.anchor:
            total = total + 0.5 * ((module(x, t - delta, t, y) - v_c) ** 2).sum()
    return total / len(batch.t)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_loss_and_gradient_equal_the_plain_twin(module: nn.Module, batch: Batch, loss: Loss) -> None:
    ema = averaged(module)
    state = start(module)
    expected = plain_loss(module, ema, batch, loss)
    gradients = torch.autograd.grad(expected, list(module.parameters()))

    def ours(params: Params) -> Tensor:
        return loss_of(module, params, start(ema).params, batch, loss)

    found, value = torch.func.grad_and_value(ours)(state.params)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
    for name, gradient in zip(found, gradients, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)


def test_update_is_adam_with_an_average(module: nn.Module, batch: Batch) -> None:
    spec = TrainSpec.model_validate(
        {"data": "x", "model": {"name": "mlp"}, "times": "uniform", "steps": 3, "learning_rate": 0.01, "ema_decay": 0.6}
    )
    state = start(module)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    average = start(module).params
    for _ in range(3):
        state, loss, norm = update(module, state, batch, spec)
        optimizer.zero_grad()
        expected = plain_loss(module, module, batch, spec.loss)
        expected.backward()
        gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(norm, torch.cat(gradients).norm())
        optimizer.step()
        average = {name: 0.6 * average[name] + 0.4 * p.detach() for name, p in module.named_parameters()}
    assert state.step == 3
    for name, p in module.named_parameters():
        torch.testing.assert_close(state.params[name], p.detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(state.ema[name], average[name], rtol=1e-9, atol=1e-12)


def test_attention_and_stacked_models() -> None:
    """Losses of two stacked models under vmap are the losses of each: what training a grid will need."""
    torch.manual_seed(0)
    models = [DiT(1, size=4, width=8, depth=1, heads=2).double() for _ in range(2)]
    x_t, v_c = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    r, t = torch.rand(3, 2, dtype=torch.float64).sort(dim=1).values.T
    batch, loss = Batch(x_t, v_c, r, t), Loss(beta=0.5)
    singles = [loss_of(models[0], start(m).params, start(m).params, batch, loss) for m in models]
    stacked, _ = torch.func.stack_module_state(models)
    together = torch.func.vmap(lambda params: loss_of(models[0], params, params, batch, loss))(stacked)
    torch.testing.assert_close(together, torch.stack(singles))
