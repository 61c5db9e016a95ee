"""primepake/splitmeanflow: a target of two parts of the interval instead of a derivative, noise at time 0.

Training has the point at the later time of the interval, the data's side, so the card's x_0 is noise and its x_1 is
data. Sampling starts from the earlier time.
"""

from __future__ import annotations

import copy
from pathlib import Path
from unittest.mock import patch

import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

from mfdiag.flow.seeds import uniforms

REPOSITORY, CODE, CARD = "primepake+splitmeanflow", "", "splitmeanflow"
SHAPE, CLASSES = (1, 8, 8), 10
SMALL = {
    "network": {"arguments": {"input_size": 8, "dim": 32, "depth": 2, "num_heads": 2}},
    "objective": {"times": "uniform"},  # the other share of training, at r = t, is distillation of a teacher
    "data": {"shape": list(SHAPE), "mean": 0, "std": 1},
}
DTYPES = (torch.float64,)  # the residual is a small difference of large numbers
DIVIDED = 8 * 8


def network() -> nn.Module:
    from dit import SMDiT, TimestepEmbedder

    features = TimestepEmbedder.timestep_embedding

    def in_precision_of(t: Tensor, *options: int) -> Tensor:
        # its code casts t to float32; mfdiag gives such casts the precision of the run
        with patch.object(torch.Tensor, "float", lambda value: value.to(t.dtype)):
            return features(t, *options).to(t)

    TimestepEmbedder.timestep_embedding = staticmethod(in_precision_of)
    options = {"patch_size": 4, "in_channels": 1, "class_dropout_prob": 0.0, "num_classes": CLASSES}
    model = SMDiT(**options, learn_sigma=False, **SMALL["network"]["arguments"])
    return nn.ModuleDict({"model": model, "ema": copy.deepcopy(model)})


def save(model: nn.Module, folder: Path) -> Path:
    # train_student_mnist.py saves in the middle of its loop; these are its keys
    states = {"model": model["model"], "ema": model["ema"], "optimizer": torch.optim.Adam(model["model"].parameters())}
    rest = {"step": 2500, "config": {"dataset": "MNIST", "image_size": 28, "time_sampling": "uniform"}}
    torch.save({key: value.state_dict() for key, value in states.items()} | rest, folder / "step_2500.pth")
    return folder / "step_2500.pth"


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor, Tensor]:
    from splitmeanflow import SplitMeanFlow

    options = {"device": "cpu", "channels": 1, "image_size": 8, "time_sampling": "uniform", "use_immiscible": False}
    net = model["model"]
    objective = SplitMeanFlow(net, nn.Identity(), flow_ratio=0.7, sigma_min=0.0, **options)
    split = torch.as_tensor(uniforms(0, "split", batch.index, 1)[:, 0]).to(batch.t)
    with (
        returning(torch, "rand", torch.tensor([0.99]), split),  # which of its losses, and where the interval is split
        returning(objective, "sample_times", (batch.r, batch.t)),
        returning(torch, "randn_like", batch.x0),
    ):
        value, e = pulled(net, lambda: objective(batch.x1, batch.y)[0], batch.x0)
    return (DIVIDED * value, DIVIDED * e) if weighted else (value, e)  # it has no weight, but takes the mean
