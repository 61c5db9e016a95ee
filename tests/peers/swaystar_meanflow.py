"""SwayStar123/MeanFlow: SiT on INVAE latents, the logarithm of the loss, guidance where r != t."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "SwayStar123+MeanFlow", "", "swaystar-meanflow"
SHAPE, CLASSES = (4, 8, 8), 10
SMALL = {
    "network": {
        "factory": "sit:SiT",
        "arguments": {
            "in_channels": 4,
            "depth": 2,
            "hidden_size": 32,
            "decoder_hidden_size": 32,
            "patch_size": 2,
            "num_heads": 2,
            "num_classes": CLASSES,
        },
    },
    "conditioning": {"classes": CLASSES, "null": CLASSES},
    "guidance": "meanflow_apart:0.2,0.7,0,0.8,0.1",  # its options, with guidance
    "data": {"shape": list(SHAPE)},
}
DTYPES = (torch.float32,)  # its position embedding is float32
UNUSED = ("wandb", "torchmetrics.image.fid", "torchmetrics.image", "torchmetrics", "autoencoder", "meanflow_sampler")
UNUSED += ("shapebatching_dataset", "accelerate", "accelerate.logging", "accelerate.utils")


def network() -> nn.Module:
    from sit import SiT

    model = SiT(use_cfg=True, fused_attn=False, qk_norm=False, **SMALL["network"]["arguments"])
    return nn.ModuleDict({"model": model, "ema": copy.deepcopy(model)})


def save(module: nn.Module, folder: Path) -> Path:
    # train.py saves in the middle of its loop; these are its keys, its arguments from its own parser
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in UNUSED}):
        from train import parse_args

    checkpoint = {
        "model": module["model"].state_dict(),
        "ema": module["ema"].state_dict(),
        "opt": torch.optim.Adam(module["model"].parameters()).state_dict(),
        "args": parse_args(["--exp-name", "small", "--model", "SiT-B/4", "--num-classes", str(CLASSES)]),
        "steps": 50000,
    }
    torch.save(checkpoint, folder / "0050000.pt")
    return folder / "0050000.pt"


def theirs(module: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor | None, Tensor]:
    from loss import SILoss

    model = module["model"]
    e = []

    def wrapped(*args: Tensor, **keywords: Tensor) -> Tensor:
        return model(*args, **keywords)

    wrapped.module = SimpleNamespace(num_classes=CLASSES)  # type: ignore[attr-defined]
    loss = SILoss(weighting="adaptive" if weighted else "uniform", cfg_omega=0.2, cfg_kappa=0.7, cfg_max_t=0.8)
    # it splits the samples by r = t and by guidance, so each is given alone
    for i in range(len(batch.t)):
        one = slice(i, i + 1)
        with (
            returning(torch, "rand", 1.0 - batch.dropped[one].to(batch.t)),  # a label is dropped where this is small
            returning(torch, "randn_like", batch.x1[one]),
            returning(loss, "sample_time_steps", (batch.r[one], batch.t[one])),
        ):
            value, part = pulled(model, lambda i=one: loss(wrapped, batch.x0[i], {"y": batch.y[i]}), batch.x0[one])
        e.append((value, part))
    values, parts = (torch.cat(column) for column in zip(*e, strict=True))
    return None if weighted else values, parts  # the weighted loss is a logarithm
