"""Gsunshine/py-meanflow: an unconditional U-Net on CIFAR-10, called with (t, t - r)."""

from __future__ import annotations

from pathlib import Path

import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "Gsunshine+py-meanflow", "meanflow", "py-meanflow"
SHAPE, CLASSES = (3, 32, 32), 0
SMALL = {"network": {"arguments": {"model_channels": 16, "num_blocks": 1}}}
DTYPES = (torch.float32,)  # its attention takes the softmax in float32 whatever the weights are
OPTIONS = ["--device", "cpu", "--ema_decays", "0.99995", "0.9996"]


def network() -> nn.Module:
    from models import model_configs
    from train_arg_parser import get_args_parser

    model_configs.MODEL_CONFIGS["unet"].update(SMALL["network"]["arguments"])
    return model_configs.instantiate_model(get_args_parser().parse_args(OPTIONS))


def save(model: nn.Module, folder: Path) -> Path:
    from training.load_and_save import save_model

    optimizer = torch.optim.Adam(model.net.parameters())
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    model.args.output_dir = str(folder)
    save_model(model.args, 0, model, optimizer, schedule)
    return folder / "checkpoint-last.pth"


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor, Tensor]:
    from models import meanflow

    model.args.norm_p = 0.75 if weighted else 0.0
    with (
        returning(torch, "randn_like", batch.x1),
        returning(meanflow, "sample_two_timesteps", (batch.t, batch.r)),
    ):
        return pulled(model.net, lambda: model.forward_with_loss(batch.x0, None), batch.x0)
