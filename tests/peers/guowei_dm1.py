"""Guowei-Zou/dm1-release: a policy conditioned on states and images, which its network encodes."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "Guowei-Zou+dm1-release", "", "dm1"
SHAPE, CLASSES, SIDE, DIM = (4, 7), 0, 24, 28
SMALL = {
    "network": {
        "arguments": {
            "backbone": {
                "obs_shape": [3, SIDE, SIDE],
                "img_h": SIDE,
                "img_w": SIDE,
                "cfg": {"embed_dim": 16, "num_heads": 2},
            },
            "mlp_dims": [32, 32, 32],
            "spatial_emb": 16,
        }
    },
}
DTYPES = (torch.float32,)  # its images are float32


def conditions(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    images = rng.integers(0, 256, (n, 1, 3, SIDE, SIDE))
    return {"state": rng.standard_normal((n, 1, 9)).astype(np.float32), "rgb": images.astype(np.float32)}


def network() -> nn.Module:
    from model.common.vit import VitEncoder, VitEncoderConfig
    from model.flow.meanflow import MeanFlow
    from model.flow.mlp_meanflow import MeanFlowViT

    own = SMALL["network"]["arguments"]
    cfg = VitEncoderConfig(**own["backbone"]["cfg"])
    backbone = VitEncoder(**own["backbone"] | {"cfg": cfg})
    options = {"horizon_steps": 4, "action_dim": 7}
    net = MeanFlowViT(cond_dim=9, residual_style=True, dropout=0.1, **options, **own | {"backbone": backbone})
    policy = {"device": "cpu", "act_min": -1, "act_max": 1, "obs_dim": 9, "max_denoising_steps": 5, "seed": 0}
    model = MeanFlow(net, **policy, **options)
    return nn.ModuleDict({"model": model, "ema": copy.deepcopy(model)})


def save(model: nn.Module, folder: Path) -> Path:
    # PreTrainAgent.save_model needs an environment; these are its keys
    optimizer = torch.optim.AdamW(model["model"].parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=lambda step: 1.0)
    states = {**model, "optimizer": optimizer, "lr_scheduler": schedule}
    torch.save({"epoch": 100} | {key: value.state_dict() for key, value in states.items()}, folder / "state_100.pt")
    return folder / "state_100.pt"


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor, Tensor]:
    import numpy

    policy, values, parts = model["model"], [], []
    for i in range(len(batch.t)):  # r = t for a fixed share of a batch
        one = slice(i, i + 1)
        policy.flow_ratio = 1.0 if batch.r[i] == batch.t[i] else 0.0
        # it takes the sigmoid of sigma N + mu
        normal = torch.logit(torch.stack([batch.t[i], batch.r[i]]).double()).numpy()[None] + 0.4
        cond = {name: value[one].float() for name, value in batch.conditions.items()}
        with (
            returning(numpy.random, "randn", normal.astype(numpy.float64)),
            returning(torch, "randn_like", batch.x1[one]),
        ):
            value, part = pulled(policy.network, lambda i=one, c=cond: policy.loss(batch.x0[i], c), batch.x0[one])
        values.append(value)
        parts.append(part)
    value, e = torch.stack(values), torch.cat(parts)
    return (DIM * value, DIM * e)
