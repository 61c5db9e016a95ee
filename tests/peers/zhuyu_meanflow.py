"""zhuyu-cs/MeanFlow, main branch: SiT on ImageNet latents, called with (r, t), guidance in the target."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "zhuyu-cs+MeanFlow", "", "zhuyu-meanflow"
SHAPE, CLASSES = (4, 32, 32), 10
SMALL = {
    "network": {
        "factory": "sit:SiT",
        "arguments": {
            "depth": 2,
            "hidden_size": 32,
            "decoder_hidden_size": 32,
            "patch_size": 4,
            "num_heads": 2,
            "num_classes": CLASSES,
        },
    },
    "conditioning": {"classes": CLASSES, "null": CLASSES},
    "guidance": "meanflow:0.2,0.92,0,0.8,0.1",  # as its README trains SiT-L/2
}
POWER = 2
UNUSED = ("lmdb", "diffusers.models.autoencoders.vae")  # imported for its data, not by what is run here


def network() -> nn.Module:
    from sit import SiT

    model = SiT(input_size=32, use_cfg=True, fused_attn=False, qk_norm=False, **SMALL["network"]["arguments"])
    return nn.ModuleDict({"model": model, "ema": copy.deepcopy(model)})


def save(module: nn.Module, folder: Path) -> Path:
    # train.py saves in the middle of its loop; these are its keys, its arguments from its own parser
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in UNUSED}):
        from train import parse_args

    optimizer = torch.optim.Adam(module["model"].parameters())
    checkpoint = {
        "model": module["model"].state_dict(),
        "ema": module["ema"].state_dict(),
        "opt": optimizer.state_dict(),
        "args": parse_args(["--exp-name", "small", "--model", "SiT-B/4", "--num-classes", str(CLASSES)]),
        "steps": 50000,
    }
    torch.save(checkpoint, folder / "0050000.pt")
    return folder / "0050000.pt"


def theirs(module: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor, Tensor]:
    from loss import SILoss

    model = module["model"]

    def wrapped(*args: Tensor, **keywords: Tensor) -> Tensor:
        return model(*args, **keywords)

    wrapped.module = SimpleNamespace(num_classes=CLASSES)  # type: ignore[attr-defined]
    loss = SILoss(weighting="adaptive" if weighted else "uniform", cfg_omega=0.2, cfg_kappa=0.92, cfg_max_t=0.8)
    with (
        returning(torch, "rand", 1.0 - batch.dropped.to(batch.t)),  # a label is dropped where this is small
        returning(torch, "randn_like", batch.x1),
        returning(loss, "sample_time_steps", (batch.r, batch.t)),
    ):
        return pulled(model, lambda: loss(wrapped, batch.x0, {"y": batch.y})[0], batch.x0)
