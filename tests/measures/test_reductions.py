"""Losses that reduce the squared residual by mean or square it: measured and trained as the literal loss says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import Sample, randomised, residual, row, rows, samples_of, velocity_of
from torch import Tensor, nn

from mfdiag import measure
from mfdiag.flow.data.datasets import load_data
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import parse_times
from mfdiag.flow.weighting import parse_weighting
from mfdiag.models.networks.mlp import MLP
from mfdiag.training.loss import LossCoefficients, TrainBatch, training_loss

SAMPLES = 48
DATA = load_data("gaussian:3,0.5,2")
LITERAL: dict[str, Callable[[Tensor], Tensor]] = {
    "adaptive:0.5,0.01,mean": lambda e: e.square().mean(),
    "adaptive:0.5,0.01,square": lambda e: e.square().sum() ** 2,
}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return randomised(MLP(3, hidden=5, depth=1)).double()


@pytest.fixture
def samples(model: nn.Module) -> list[Sample]:
    return samples_of(Draws(DATA, parse_times("uniform"), 0), SAMPLES, model)


def literal(model: nn.Module, s: Sample, spec: str) -> tuple[Tensor, Tensor]:
    """The loss of one sample, as loss code writes it, and its gradient, flat."""
    u = velocity_of(model, s)
    loss = LITERAL[spec](u - (u - residual(model, s, 0, 0)).detach())
    loss = loss / (loss.detach() + 0.01) ** 0.5
    return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("spec", LITERAL)
def test_gradients_and_losses_are_those_of_the_literal_loss(spec: str, model: nn.Module, samples: list[Sample]) -> None:
    losses, gradients = (torch.stack(parts) for parts in zip(*(literal(model, s, spec) for s in samples), strict=True))
    options = {"times": "uniform", "samples": SAMPLES, "dtype": torch.float64, "weighting": spec, "by_layer": False}
    found = measure(model, DATA, tables=("variance", "sweep"), beta=(0.0,), estimators=["meanflow"], **options)
    each = found["samples"].set_index("index")
    for quantity, truth in (("loss", losses), ("grad_norm2", gradients.square().sum(1))):
        values = rows(each, quantity=quantity)["value"].sort_index().to_numpy(float)
        np.testing.assert_allclose(values, truth.numpy(), rtol=1e-8)
    variance = float(gradients.var(0).sum())
    whole = {"quantity": "variance", "layer": "all"}
    assert row(found["variance"], **whole)["value"] == pytest.approx(variance, rel=1e-8)
    assert row(found["sweep"], **whole, space="gradient", beta=0.0)["value"] == pytest.approx(variance, rel=1e-8)


@pytest.mark.parametrize("spec", LITERAL)
def test_training_descends_the_literal_loss(spec: str, model: nn.Module, samples: list[Sample]) -> None:
    losses, gradients = (torch.stack(parts) for parts in zip(*(literal(model, s, spec) for s in samples), strict=True))
    batch = TrainBatch(*(torch.stack([getattr(s, name) for s in samples]) for name in ("x", "v_c", "r", "t")))
    params = dict(model.named_parameters())
    loss = training_loss(model, params, {}, batch, LossCoefficients(), parse_weighting(spec))
    found = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(params.values()))])
    torch.testing.assert_close(loss.detach(), losses.mean())
    torch.testing.assert_close(found, gradients.mean(0))
