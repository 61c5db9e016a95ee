"""primepake/modular_meanflow: MeanFlow with a guidance scale of 5 on MNIST, noise at time 0.

Training has the point at the later time of the interval, the data's side, so the card's x_0 is noise and its x_1 is
data. Sampling starts from the earlier time.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from unittest import mock

import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "primepake+modular_meanflow", "", "modular-meanflow"
SHAPE, CLASSES = (1, 8, 8), 10
SMALL = {
    "network": {"arguments": {"input_size": 8, "dim": 32, "depth": 2, "num_heads": 2}},
    "data": {"shape": list(SHAPE), "mean": 0, "std": 1},
}
DTYPES = (torch.float32,)  # its time features are float32
DIVIDED = 8 * 8


def network() -> nn.Module:
    from dit import DiT

    options = {"patch_size": 4, "in_channels": 1, "num_classes": CLASSES, "class_dropout_prob": 0.1}
    model = DiT(**options, learn_sigma=False, **SMALL["network"]["arguments"])
    return nn.ModuleDict({"model": model, "ema_model": copy.deepcopy(model)})


def save(model: nn.Module, folder: Path) -> Path:
    # train.py saves in the middle of its loop; these are its keys
    states = {**model, "optimizer": torch.optim.Adam(model["model"].parameters(), lr=1e-4)}
    rest = {"step": 2500, "config": {"dataset": "MNIST", "image_size": 28, "image_channels": 1, "ema_decay": 0.9999}}
    torch.save({key: value.state_dict() for key, value in states.items()} | rest, folder / "step_2500.pth")
    return folder / "step_2500.pth"


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor, Tensor]:
    import model as code

    net = model["model"]
    objective = code.MeanFlow(device="cpu", channels=1, image_size=8, num_classes=CLASSES)
    objective.lambda_mode, objective.fixed_lambda = "fixed", 1.0  # it reads these and sets them nowhere
    plain = functools.partial(code.adaptive_l2_loss, gamma=1.0)  # a power of 1 - gamma
    with (
        mock.patch.object(code, "adaptive_l2_loss", code.adaptive_l2_loss if weighted else plain),
        returning(torch, "rand", 1.0 - batch.dropped.to(batch.t)),  # a label is dropped where this is small
        returning(objective, "sample_t_r", (batch.t, batch.r)),
    ):
        return pulled(net, lambda: objective.loss(net, batch.x1, batch.x0, batch.y)[0], batch.x0)
