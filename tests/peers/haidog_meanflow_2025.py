"""haidog-yaqub/MeanFlow before June 2026: a DiT, called with (t, r, y), guidance in the target."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from unittest import mock

import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "haidog-yaqub+MeanFlow@2025", "", "haidog-meanflow-2025"
SHAPE, CLASSES = (3, 32, 32), 10
SMALL = {"network": {"arguments": {"dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4}}}
DIVIDED = 3 * 32 * 32
DTYPES = (torch.float32,)  # the embedding of times is float32 whatever the weights are


def network() -> nn.Module:
    from models.dit import MFDiT

    return MFDiT(input_size=32, in_channels=3, num_classes=CLASSES, **SMALL["network"]["arguments"])


def save(model: nn.Module, folder: Path) -> Path:
    from accelerate import Accelerator

    Accelerator(cpu=True).save(model.state_dict(), folder / "step_200000.0.pt")
    return folder / "step_200000.0.pt"


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor, Tensor]:
    import meanflow

    objective = meanflow.MeanFlow(
        channels=3,
        normalizer=["mean_std", 0.0, 1.0],  # the samples are on the network's scale already
        cfg_uncond="u",
    )
    power = partial(meanflow.adaptive_l2_loss, **({} if weighted else {"gamma": 1.0}))
    with (
        mock.patch.object(meanflow, "adaptive_l2_loss", power),
        returning(torch, "randn_like", batch.x1),
        returning(torch, "rand_like", 1.0 - batch.dropped.to(batch.t)),  # a label is dropped where this is small
        returning(objective, "sample_t_r", (batch.t, batch.r)),
    ):
        return pulled(model, lambda: objective.loss(model, batch.x0, batch.y)[0], batch.x0)
