"""lucidrains/rectified-flow-pytorch: MeanFlow with (x, t, t - r), whole batches with r = t, ema-pytorch."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "lucidrains+rectified-flow-pytorch", "", "rectified-flow"
SHAPE, CLASSES = (3, 8, 8), 0
SMALL = {
    "network": {"arguments": {"dim": 8, "dim_mults": [1, 2]}},
    "data": {"shape": list(SHAPE), "mean": 0, "std": 1},
}
DTYPES = (torch.float32,)  # its time features are float32
DIVIDED = 3 * 8 * 8


def network() -> nn.Module:
    from ema_pytorch import EMA
    from rectified_flow_pytorch import MeanFlow, Unet

    model = MeanFlow(Unet(channels=3, accept_dest_time=True, **SMALL["network"]["arguments"]))
    return nn.ModuleDict({"model": model, "ema_model": EMA(model, include_online_model=True)})


def save(model: nn.Module, folder: Path) -> Path:
    from rectified_flow_pytorch import Trainer

    images = torch.rand(4, *SHAPE)
    trainer = Trainer(model["model"], dataset=images, batch_size=2, checkpoints_folder=folder, results_folder=folder)
    trainer.ema_model.load_state_dict(model["ema_model"].state_dict())
    trainer.save("checkpoint.1000.pt")
    return folder / "checkpoint.1000.pt"


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor, Tensor]:
    import rectified_flow_pytorch.mean_flow as code

    objective, values, parts = model["model"], [], []
    with mock.patch.object(objective, "use_adaptive_loss_weight", weighted):
        for i in range(len(batch.t)):  # r = t for all samples of a batch, or for none
            one, equal = slice(i, i + 1), bool(batch.r[i] == batch.t[i])
            times = (batch.t[one],) if equal else (batch.t[one], batch.r[one])
            with (
                returning(code, "random", 0.0 if equal else 1.0),
                returning(objective, "sample_times", *times),
            ):
                value, part = pulled(
                    objective.model, lambda i=one: objective(batch.x0[i], noise=batch.x1[i]), batch.x0[one]
                )
            values.append(value)
            parts.append(part)
    return torch.stack(values), torch.cat(parts)
