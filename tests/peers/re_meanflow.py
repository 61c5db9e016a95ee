"""Xinxi-Zhang/Re-MeanFlow: EDM2's U-Net under a preconditioning for straight paths, on reflowed pairs."""

from __future__ import annotations

import copy
from argparse import Namespace
from pathlib import Path

import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "Xinxi-Zhang+Re-MeanFlow", "", "re-meanflow"
SHAPE, CLASSES = (3, 16, 16), 1000
SMALL = {
    "network": {
        "arguments": {
            "img_resolution": 16,
            "img_channels": 3,
            "model_channels": 16,
            "channel_mult": [1, 2],
            "num_blocks": 1,
            "attn_resolutions": [8],
            "channels_per_head": 16,
        }
    },
    "data": {"shape": list(SHAPE)},
}
DTYPES = (torch.float32,)  # its preconditioning casts to float32
DIVIDED = 3 * 16 * 16


def network() -> nn.Module:
    from edm2.networks_edm2 import Precond

    model = Precond(label_dim=1000, use_fp16=False, sigma_data=0.5, **SMALL["network"]["arguments"])
    del model.unet.emb_noise  # as train.py does
    return nn.ModuleDict({"model": model, "ema": copy.deepcopy(model)})


def save(model: nn.Module, folder: Path) -> Path:
    # train.py saves in the middle of its loop; these are its keys
    states = {"model": model["model"], "ema": model["ema"], "opt": torch.optim.Adam(model["model"].parameters())}
    rest = {"epoch": 1, "train_steps": 2500, "args": Namespace(model="edm2-img64-s-autog-fid", p=0.5, pc=1e-2)}
    torch.save({key: value.state_dict() for key, value in states.items()} | rest, folder / "0002500.pt")
    return folder / "0002500.pt"


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor, Tensor]:
    from meanflow import MeanFlow

    net = model["model"]
    objective = MeanFlow(net, p=0.5 * weighted, pc=1e-2)
    with (
        returning(objective, "sample_t_and_r_re2_truncate", (batch.t, batch.r, None)),
        returning(torch, "rand", 1.0 - batch.dropped.to(batch.t)),  # a label is dropped where this is small
    ):
        return pulled(net, lambda: objective.loss_edm(batch.x0, batch.y, noise=batch.x1)["loss"], batch.x0)
