"""facebookresearch/flow_matching, its image example: flow matching with data at t = 1; a teacher."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch
from interception import Batch, pulled
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "facebookresearch+flow_matching", "examples/image", "flow-matching"
PATHS = ("",)
SHAPE, CLASSES, DIM = (3, 8, 8), 10, 192
SMALL = {
    "network": {
        "arguments": {
            "model_channels": 32,
            "num_res_blocks": 1,
            "attention_resolutions": [2],
            "channel_mult": [1, 2],
            "num_head_channels": 32,
            "num_classes": CLASSES,
        }
    },
    "conditioning": {"classes": CLASSES, "null": CLASSES},
    "data": {"shape": [3, 8, 8], "mean": 0, "std": 1},
}
TEACHER = True
DTYPES = (torch.float32,)  # its normalisation and time features are float32


def network() -> nn.Module:
    from models.ema import EMA
    from models.model_configs import MODEL_CONFIGS
    from models.unet import UNetModel

    return nn.ModuleList([EMA(UNetModel(**(MODEL_CONFIGS["imagenet"] | SMALL["network"]["arguments"])))])


def save(model: nn.Module, folder: Path) -> Path:
    from training.grad_scaler import NativeScalerWithGradNormCount
    from training.load_and_save import save_model

    (model,) = model
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    args = Namespace(output_dir=str(folder), dataset="imagenet", use_ema=True, optimizer_betas=[0.9, 0.95])
    save_model(args, 0, model, model, optimizer, schedule, NativeScalerWithGradNormCount())
    return folder / "checkpoint.pth"


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor, Tensor]:
    from flow_matching.path import CondOTProbPath

    (ema,) = model
    ema.train(True)  # takes the EMA weights, which eval() put there, out again
    net = ema.model.eval()

    labels = torch.where(batch.dropped, CLASSES, batch.y)

    def loss() -> Tensor:
        sample = CondOTProbPath().sample(t=1 - batch.t, x_0=batch.x1, x_1=batch.x0)
        return torch.pow(net(sample.x_t, sample.t, extra={"label": labels}) - sample.dx_t, 2).mean()

    value, e = pulled(net, loss, batch.x0)
    return DIM * value, -DIM * e  # its loss is the mean over coordinates, its velocity runs from noise to data
