"""sony/mf-rae: a DiT with a wide head on RAE latents, trained with a central difference in place of the derivative."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "sony+mf-rae", "src", "mf-rae"
SHAPE, CLASSES = (8, 4, 4), 1000
SMALL = {
    "network": {
        "arguments": {"input_size": 4, "in_channels": 8, "hidden_size": [32, 48], "depth": [2, 1], "num_heads": [2, 2]}
    },
    "data": {"shape": list(SHAPE)},
}
DTYPES = (torch.float64,)  # a difference over 0.01 has few digits in float32
POWER = 2


def network() -> nn.Module:
    from stage2.models.DDT import DiTwDDTHead_MF
    from stage2.models.model_utils import RMSNorm

    RMSNorm.forward = lambda norm, x: norm._norm(x) * norm.weight  # as it is, without casts to float32 and back
    model = DiTwDDTHead_MF(**SMALL["network"]["arguments"])
    return nn.ModuleDict({"model": model, "ema": copy.deepcopy(model)})


def save(model: nn.Module, folder: Path) -> Path:
    from utils.optim_utils import build_optimizer, build_scheduler

    settings = {"base_lr": 1e-4, "final_lr": 1e-4, "schedule_type": "linear"}
    optimizer, _ = build_optimizer(model["model"].parameters(), settings)
    scheduler, _ = build_scheduler(optimizer, 1, settings)
    states = {"model": model["model"], "ema": model["ema"], "opt": optimizer, "scheduler": scheduler}
    rest = {"train_steps": 1000, "config_path": "MF_XL.yaml", "training_cfg": settings, "cli_overrides": {}}
    torch.save({key: value.state_dict() for key, value in states.items()} | rest, folder / "latest.pt")
    return folder / "latest.pt"


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor, Tensor]:
    from stage2.transport import create_transport

    transport = create_transport()

    def each(x: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The network on the batch and on both ends of the difference, one after another."""
        return torch.cat([model["model"](*part) for part in zip(*(a.chunk(3) for a in (x, r, t, y)), strict=True)])

    def loss() -> Tensor:
        return transport.training_losses_mft(each, batch.x0, {"y": batch.y}, adaptive_p=float(weighted))["loss"]

    with (
        returning(torch, "rand", 1.0 - batch.dropped.to(batch.t)),  # a label is dropped where this is small
        returning(transport, "sample_mf", (batch.r, batch.t, batch.x1, batch.x0)),
    ):
        value, e = pulled(model["model"], loss, batch.x0)
    if weighted:
        return value, e
    # without its weight the loss is S^2 with S = |e|^2, and half its derivative 2 S e
    return value, e / (2 * value.sqrt()).view(-1, *[1] * len(SHAPE))
