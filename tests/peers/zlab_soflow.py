"""zlab-princeton/SoFlow: solution consistency and flow matching, each with its weight, guidance that decays."""

from __future__ import annotations

import copy
from pathlib import Path
from unittest import mock

import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "zlab-princeton+SoFlow", "", "soflow"
SHAPE, CLASSES, DIM = (4, 8, 8), 10, 256
RATIO, SHARE = 0.1, 0.75  # the ratio that training starts with: at its end, differences of float32 say little
SMALL = {
    "network": {
        "arguments": {
            "input_size": 8,
            "hidden_size": 32,
            "depth": 2,
            "num_heads": 2,
            "num_classes": CLASSES,
        },
    },
    "conditioning": {"classes": CLASSES, "null": CLASSES},
    "objective": {  # its quotient of differences has no value at r = t, which its training leaves out
        "estimator": f"soflow:{RATIO},0.857142857142857,1,0.01",
        "times": "logit_normal_sorted:0.2,0.8,-1,0.8,1",
    },
    "data": {"shape": list(SHAPE), "scale": 1},
}
DTYPES = (torch.float32,)  # its time features are float32


def network() -> nn.Module:
    import models
    from dit import DiT

    sizes = {"patch_size": 4, "in_channels": 4, "learn_sigma": False} | SMALL["network"]["arguments"]
    with mock.patch.object(models, "DiT", lambda **options: DiT(**options | sizes)):
        model = models.Soflow(data_channels=4, data_size=8, num_classes=CLASSES, model_type="DiT-B-4")
    return nn.ModuleDict({"model": model, "ema_model": copy.deepcopy(model)})


def save(model: nn.Module, folder: Path) -> Path:
    # train.py saves in the middle of its loop; these are its keys
    states = {**model, "optimizer": torch.optim.AdamW(model["model"].parameters(), lr=1e-4)}
    rest = {"finished_steps": 25000, "finished_epochs": 5}
    torch.save({key: value.state_dict() for key, value in states.items()} | rest, folder / "25000.pt")
    return folder / "25000.pt"


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[None, Tensor]:
    objective = model["model"]
    options = {"samples": batch.x0, "labels": batch.y, "cfg_mask": batch.dropped, "augment_labels": None}
    options |= {"cfg_scale": 3.0, "cfg_decay_time": 0.8, "p": 1.0, "eps": 0.01, "mix_ratio": 0.25}
    times = {"t": batch.t, "l": batch.t - RATIO * (batch.t - batch.r), "s": batch.r}
    states = {"get_rng_state": lambda: None, "set_rng_state": lambda state: None}  # of a GPU

    def loss() -> Tensor:
        velocity = objective(get_velocity_loss=True, t=batch.t.view(-1, 1, 1, 1), **options)[0]
        consistency = objective(get_velocity_loss=False, **times, **options)[0]
        return SHARE * velocity + (1 - SHARE) * consistency

    with mock.patch.multiple(torch.cuda, **states), returning(torch, "randn_like", batch.x1, batch.x1):
        _, e = pulled(objective.network, loss, batch.x0)
    return None, 2 / (1 + SHARE) * DIM * e  # means over coordinates, and a consistency loss of half the gradient
