"""ali-vilab/FACM without its teacher: one time for the point and for r, guidance by its average velocity."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "ali-vilab+FACM", "", "facm"
SHAPE, CLASSES, DIM = (4, 8, 8), 1000, 256  # its guidance knows the null label 1000 alone
SIZES = {"input_size": 8, "patch_size": 2, "in_channels": 4, "depth": 2, "hidden_size": 32, "num_heads": 2}
SMALL = {
    "network": {"arguments": {"size": "LightningDiT", "num_classes": CLASSES, **SIZES}},
    "conditioning": {"classes": CLASSES, "null": CLASSES},
    "data": {"shape": list(SHAPE)},
    "guidance": "facm:1.75,0,0.875,0",
}
DTYPES = (torch.float32,)  # its time features are float32
UNUSED = ("torch_fidelity", "accelerate", "accelerate.utils", "ldit.vavae", "ldit.img_latent_dataset", "sampler")


def network() -> nn.Module:
    from ema_pytorch import PostHocEMA
    from ldit.lightningdit import LightningDiT

    options = {"use_qknorm": True, "use_swiglu": True, "use_rope": True, "use_rmsnorm": True}
    model = LightningDiT(num_classes=CLASSES, disable_label_dropout=True, **options, **SIZES)
    emas = PostHocEMA(model, sigma_rels=[0.05, 0.2], update_every=1, checkpoint_folder="/tmp/unused")
    return nn.ModuleDict({"model": model, "emas": emas})


def save(model: nn.Module, folder: Path) -> Path:
    # save_ckpt of utils needs its data's packages; these are its keys
    optimizer = torch.optim.AdamW(model["model"].parameters(), lr=1e-4)
    rest = {"args": Namespace(distill=True, cfgw=1.75, t_type="default", p=0.5), "epoch": 3, "step": 10000}
    states = {"model": model["model"], "emas": model["emas"], "opt": optimizer}
    torch.save({key: value.state_dict() for key, value in states.items()} | rest, folder / "0010000.pt")
    return folder / "0010000.pt"


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[None, Tensor]:
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in UNUSED}):
        from losses import FACMLoss

    net, objective = model["model"], FACMLoss()
    args = SimpleNamespace(t_type="default", cfgw=1.75, distill=False, glow=0.125, ghigh=1.0, p=0.5)
    states = {"get_rng_state": lambda: None, "set_rng_state": lambda state: None}  # of a GPU
    with (
        mock.patch.multiple(torch.cuda, **states),
        returning(torch, "randn_like", batch.x1),
        returning(objective, "sample_t", (1 - batch.t).view(-1, 1, 1, 1)),
    ):
        _, e = pulled(net, lambda: objective(None, net, net, None, batch.x0, 0, {"y": batch.y}, args)[0], batch.x0)
    return None, -DIM * e  # means over coordinates; the velocity runs from noise to data
