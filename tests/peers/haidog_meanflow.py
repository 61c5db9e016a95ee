"""haidog-yaqub/MeanFlow since June 2026: a DiT with heads for u and v; the head's v is the tangent."""

from __future__ import annotations

from pathlib import Path

import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "haidog-yaqub+MeanFlow", "", "haidog-meanflow"
SHAPE, CLASSES = (3, 32, 32), 10
SMALL = {"network": {"arguments": {"dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4}}}
DIVIDED = 3 * 32 * 32
DTYPES = (torch.float32,)  # the embedding of times is float32 whatever the weights are


def network() -> nn.Module:
    from models.dit import MFDiT

    return MFDiT(input_size=32, in_channels=3, num_classes=CLASSES, max_cfg=7.5, **SMALL["network"]["arguments"])


def save(model: nn.Module, folder: Path) -> Path:
    from accelerate import Accelerator

    Accelerator(cpu=True).save(model.state_dict(), folder / "step_0000500.pt")
    return folder / "step_0000500.pt"


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor, Tensor]:
    from meanflow import MeanFlow

    objective = MeanFlow(
        channels=3,
        normalizer=["mean_std", 0.0, 1.0],  # the samples are on the network's scale already
        cfg_scale=[1.0, 7.5],
        adaptive_l2_gamma=0.0 if weighted else 1.0,
        adaptive_l2_c=1e-2,
    )
    found = {}

    def loss() -> Tensor:
        value, found["parts"] = objective.loss(model, batch.x0, batch.y)
        return value

    with (
        returning(torch, "randn_like", batch.x1),
        returning(torch, "rand_like", 1.0 - batch.dropped.to(batch.t)),  # a label is dropped where this is small
        returning(objective, "sample_t_r", (batch.t, batch.r, batch.omega)),
    ):
        _, residual = pulled(model, loss, batch.x0)
    return found["parts"]["mf_loss"], residual  # without the loss of the v-head
