"""Every method that training takes: its gradient against its paper's plain loss, and a loss that falls."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import estimator_cases as cases
import numpy as np
import pytest
import torch
from plain import LOSSES, One
from specs import spec_of
from torch import Tensor
from torch.func import grad, vmap

from mfdiag.errors import InputError
from mfdiag.estimators import estimators
from mfdiag.flow.paths import LINEAR
from mfdiag.flow.weighting import Weighting
from mfdiag.training.estimator_loss import estimator_losses
from mfdiag.training.grid import GridCell
from mfdiag.training.loss import TrainBatch
from mfdiag.training.trainable import is_trainable, trainable_estimator
from mfdiag.training.trainer import TrainOptions, train

# the twin of a clipped difference holds away from the ends alone
TRAINABLE = [spec for spec in LOSSES if is_trainable(spec) and spec != "finite_difference:0.01,1"]


@cache
def batch(count: int) -> TrainBatch:
    draws = cases.draws("restricted:0.6")
    drawn = draws.batch(np.arange(count))
    uniform = torch.as_tensor(draws.uniforms("split", np.arange(count), 1)[:, 0])
    return TrainBatch(drawn.x_t, drawn.velocity, drawn.r, drawn.t, None, drawn.labels, None, uniform)


@pytest.mark.parametrize("spec", TRAINABLE)
def test_gradient_is_that_of_the_papers_loss(spec: str) -> None:
    module, ema, teacher = cases.networks()
    draws = cases.draws("restricted:0.6")
    params = {name: p.detach() for name, p in module.named_parameters()}
    averages = {name: p.detach() for name, p in ema.named_parameters()}
    estimator = trainable_estimator(spec)

    def loss(values: dict[str, Tensor], data: TrainBatch) -> Tensor:
        return estimator_losses(module, values, averages, data, estimator, Weighting(), LINEAR).mean()

    stacked = {name: torch.stack([p, p]) for name, p in params.items()}
    twice = TrainBatch._make(None if value is None else torch.stack([value, value]) for value in batch(4))
    axes = TrainBatch._make(None if value is None else 0 for value in twice)
    alone, many = grad(loss)(params, batch(4)), vmap(grad(loss), in_dims=(0, axes))(stacked, twice)
    module.requires_grad_()
    truth = sum(LOSSES[spec](One(module, ema, teacher, draws, i)) for i in range(4)) / 4
    expected = torch.autograd.grad(truth, list(module.parameters()), allow_unused=True, materialize_grads=True)
    module.requires_grad_(False)
    for (name, _), gradient in zip(module.named_parameters(), expected, strict=True):
        torch.testing.assert_close(alone[name], gradient, rtol=1e-10, atol=1e-11, msg=name)
        torch.testing.assert_close(many[name][1], gradient, rtol=1e-10, atol=1e-11, msg=name)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ema_tangent", "a point of the plane: set loss.beta to 1 and loss.gamma to 0"),
        ("cmt", "needs a teacher, which training does not have"),
        ("facm:teacher=1", "needs a teacher"),
        ("dispersive", "draws other samples"),
        ("stable_velocity", "draws other samples"),
        ("soflw", "Did you mean 'soflow'"),
        ("mine.py:MINE", "code in a file"),
    ],
)
def test_what_training_lacks(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        trainable_estimator(spec)


@pytest.mark.parametrize("name", [name for name in estimators() if is_trainable(name)])
def test_the_loss_falls(name: str, tmp_path: Path) -> None:
    # sCM's loss is |g|^2 / (|g| + c)^2, which hardly moves at the published c
    spec = spec_of(
        data="two_moons",
        model={"name": "mlp", "arguments": {"dim": 2, "hidden": 16, "depth": 2}},
        times="uniform:r_ne_t=0.5",
        loss={"estimator": "scm:100" if name == "scm" else name},
        steps=80,
        batch_size=128,
        learning_rate=5e-3,
        log_every=20,
        save_every=80,
    )
    (cell,) = train([GridCell("one", spec)], tmp_path, TrainOptions(), say=pytest.fail)
    losses = [entry.value for entry in cell.log if entry.quantity == "loss"]
    assert losses[-1] < 0.98 * losses[0], losses
