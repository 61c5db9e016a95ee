"""kyungmnlee/dmf: Decoupled MeanFlow, whose early blocks see t and late blocks r."""

from __future__ import annotations

import copy
from argparse import Namespace
from pathlib import Path

import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "kyungmnlee+dmf", "", "dmf"
SHAPE, CLASSES = (4, 8, 8), 1000
SMALL = {
    "network": {
        "factory": "models.dmft:DMFT",
        "arguments": {"input_size": 8, "depth": 3, "hidden_size": 32, "num_heads": 2, "dmf_depth": 2},
    },
    "data": {"shape": list(SHAPE), "scale": 1},
}
DTYPES = (torch.float32,)  # its time features are float32
ABSENT = ("flash_attn_2_cuda", "flash_attn_3._C")


def network() -> nn.Module:
    from models.dmft import DMFT

    model = DMFT(use_logvar=True, attn_func="base", qk_norm=False, **SMALL["network"]["arguments"])
    return nn.ModuleDict({"model": model, "ema": copy.deepcopy(model)})


def save(model: nn.Module, folder: Path) -> Path:
    # train_dmf.py saves in the middle of its loop; these are its keys
    states = {"model": model["model"], "ema": model["ema"], "opt": torch.optim.AdamW(model["model"].parameters())}
    args = Namespace(model="DMFT-XL/2", resolution=64, num_classes=1000, dmf_depth=2, qk_norm=False, cfg_prob=0.1)
    rest = {"args": args, "steps": 50000}
    torch.save({key: value.state_dict() for key, value in states.items()} | rest, folder / "0050000.pt")
    return folder / "0050000.pt"


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor | None, Tensor]:
    from loss import DMFLoss

    net, loss = model["model"], DMFLoss(omega=0.6, g_max=0.7, g_type="mg")
    nn.init.zeros_(net.logvar_linear.weight)  # no log-variance, which stands beside the prediction and weighs its loss
    nn.init.zeros_(net.logvar_linear.bias)
    times = tuple(time.view(-1, 1, 1, 1) for time in (batch.t, batch.t, batch.r))
    with (
        returning(torch, "rand", 1.0 - batch.dropped.to(batch.t)),  # a label is dropped where this is small
        returning(loss, "sample_times", times),
        returning(torch, "randn_like", batch.x1, batch.x1),
    ):
        part = "mf_p_loss" if weighted else "mf_loss"
        value, e = pulled(net, lambda: loss(net, net, batch.x0, batch.y)[1][part].mean(), batch.x0)
    # the weighted loss is a logarithm, of each sample's error over every sample's variance: [n, 1, 1, n]
    return None if weighted else value, e
