"""facebookresearch/DiT: diffusion on ImageNet latents, noise prediction with a learned variance; a teacher."""

from __future__ import annotations

import copy
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from interception import Batch
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "facebookresearch+DiT", "", "dit"
SHAPE, CLASSES, DIM, STEP = (4, 8, 8), 10, 256, 500
SMALL = {
    "network": {
        "factory": "models:DiT",
        "arguments": {"input_size": 8, "depth": 2, "hidden_size": 32, "num_heads": 2, "num_classes": CLASSES},
    },
    "conditioning": {"classes": CLASSES, "null": CLASSES},
    "objective": {"times": f"point:{STEP / 999!r},{STEP / 999!r}"},  # it has whole steps alone
    "data": {"shape": list(SHAPE), "scale": 1},
}
DTYPES = (torch.float32,)  # its time features are float32
TEACHER = True  # of a network on the linear path


def network() -> nn.Module:
    from models import DiT

    model = DiT(**SMALL["network"]["arguments"])
    return nn.ModuleDict({"model": model, "ema": copy.deepcopy(model)})


def save(model: nn.Module, folder: Path) -> Path:
    # train.py saves in the middle of its loop; these are its keys
    states = {**model, "opt": torch.optim.AdamW(model["model"].parameters(), lr=1e-4, weight_decay=0)}
    rest = {"args": Namespace(model="DiT-XL/2", image_size=64, num_classes=CLASSES, vae="ema")}
    torch.save({key: value.state_dict() for key, value in states.items()} | rest, folder / "0050000.pt")
    return folder / "0050000.pt"


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[None, Tensor]:
    from diffusion import create_diffusion

    diffusion, zero = create_diffusion(timestep_respacing=""), torch.zeros_like(batch.x0, requires_grad=True)
    steps = torch.full((len(batch.t),), STEP)
    y = torch.where(batch.dropped, CLASSES, batch.y)  # the network drops them itself when it trains

    def noised(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        noise, variance = model["model"](x, t, y).split(4, dim=1)
        return torch.cat([noise + zero, variance], 1)

    terms = diffusion.training_losses(noised, batch.x0, steps, {"y": y}, noise=batch.x1)
    (gradient,) = torch.autograd.grad(terms["mse"].sum(), zero)
    # u = (a' x_t + D eps) / a with D = a s' - a' s, and D / a = -(log a)' / s where a^2 + s^2 = 1
    slope = np.gradient(np.log(diffusion.alphas_cumprod))[STEP] * 999 / 2
    factor = -slope / np.sqrt(1 - diffusion.alphas_cumprod[STEP])
    return None, DIM / 2 * factor * gradient  # its loss is the mean over coordinates
