"""atong01/conditional-flow-matching (torchcfm): flow matching on CIFAR-10, data at t = 1; a teacher."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from interception import Batch, pulled
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "atong01+conditional-flow-matching", "", "torchcfm"
SHAPE, CLASSES, DIM = (3, 8, 8), 0, 192
SMALL = {
    "network": {
        "arguments": {
            "dim": [3, 8, 8],
            "num_channels": 32,
            "num_res_blocks": 1,
            "channel_mult": [1, 2],
            "num_head_channels": 32,
            "attention_resolutions": "4",
        }
    },
    "data": {"shape": [3, 8, 8], "mean": 0, "std": 1},
}
TEACHER = True
DTYPES = (torch.float32,)  # its normalisation and time features are float32


def network() -> nn.Module:
    from torchcfm.models.unet.unet import UNetModelWrapper

    options = {"num_heads": 4, "dropout": 0.1, **SMALL["network"]["arguments"]}
    model = UNetModelWrapper(**options)
    return nn.ModuleDict({"net_model": model, "ema_model": copy.deepcopy(model)})


def save(model: nn.Module, folder: Path) -> Path:
    optimizer = torch.optim.Adam(model["net_model"].parameters(), lr=2e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=lambda step: 1.0)
    states = {"net_model": model["net_model"], "ema_model": model["ema_model"], "sched": schedule, "optim": optimizer}
    path = folder / "icfm_cifar10_weights_step_20000.pt"
    torch.save({key: value.state_dict() for key, value in states.items()} | {"step": 20000}, path)
    return path


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor, Tensor]:
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    net = model["net_model"]

    def loss() -> Tensor:
        matcher = ConditionalFlowMatcher(sigma=0.0)
        t, x, u = matcher.sample_location_and_conditional_flow(batch.x1, batch.x0, 1 - batch.t)
        return torch.mean((net(t, x) - u) ** 2)

    value, e = pulled(net, loss, batch.x0)
    return DIM * value, -DIM * e  # its loss is the mean over coordinates, its velocity runs from noise to data
