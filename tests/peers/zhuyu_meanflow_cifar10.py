"""zhuyu-cs/MeanFlow, branch cifar10: an unconditional U-Net, called with (r, t)."""

from __future__ import annotations

import copy
from pathlib import Path
from unittest import mock

import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "zhuyu-cs+MeanFlow@cifar10", "", "zhuyu-meanflow-cifar10"
SHAPE, CLASSES = (3, 32, 32), 0
SMALL = {"network": {"arguments": {"model_channels": 16, "num_blocks": 1}}}


def network() -> nn.Module:
    from unet import SongUNet

    model = SongUNet(img_resolution=32, in_channels=3, out_channels=3, **SMALL["network"]["arguments"])
    return nn.ModuleDict({"model": model, "ema": copy.deepcopy(model)})


def save(module: nn.Module, folder: Path) -> Path:
    from train import parse_args

    # train.py saves in the middle of its loop; these are its keys, its arguments from its own parser
    optimizer = torch.optim.Adam(module["model"].parameters())
    checkpoint = {
        "model": module["model"].state_dict(),
        "ema": module["ema"].state_dict(),
        "opt": optimizer.state_dict(),
        "args": parse_args(["--exp-name", "small", "--adaptive-p", "0.75"]),
        "steps": 50000,
    }
    torch.save(checkpoint, folder / "0050000.pt")
    return folder / "0050000.pt"


def theirs(module: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor, Tensor]:
    from loss import SILoss

    loss = SILoss(weighting="adaptive" if weighted else "uniform", adaptive_p=0.75)
    model = module["model"]
    with (
        mock.patch.object(type(model), "module", model, create=True),  # the loss expects DistributedDataParallel
        returning(torch, "randn_like", batch.x1),
        returning(loss, "sample_time_steps", (batch.r, batch.t)),
    ):
        return pulled(model, lambda: loss(model, batch.x0), batch.x0)
