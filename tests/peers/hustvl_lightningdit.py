"""hustvl/LightningDiT: flow matching on VA-VAE latents, compiled layers, data at t = 1; a teacher."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import yaml
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "hustvl+LightningDiT", "", "lightningdit"
SHAPE, CLASSES, DIM = (4, 8, 8), 10, 256
SMALL = {
    "network": {
        "factory": "models.lightningdit:LightningDiT",
        "arguments": {
            "input_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "num_classes": CLASSES,
        },
    },
    "conditioning": {"classes": CLASSES, "null": CLASSES},
    "data": {"shape": list(SHAPE)},
}
TEACHER = True
DTYPES = (torch.float32,)  # its time features are float32


def network() -> nn.Module:
    from models.lightningdit import LightningDiT

    torch._dynamo.config.disable = True  # its compiled functions, run as they are written
    options = {"use_swiglu": True, "use_rope": True, "use_rmsnorm": True}
    model = LightningDiT(**options, **SMALL["network"]["arguments"])
    return nn.ModuleDict({"model": model, "ema": copy.deepcopy(model)})


def save(model: nn.Module, folder: Path) -> Path:
    # train.py saves in the middle of its loop; these are its keys, its configuration the one that it ships
    import transport

    shipped = Path(transport.__file__).parent.parent / "configs" / "lightningdit_xl_vavae_f16d32.yaml"
    config = yaml.safe_load(shipped.read_text())
    config["data"]["num_classes"] = CLASSES
    states = {**model, "opt": torch.optim.AdamW(model["model"].parameters(), lr=2e-4, weight_decay=0)}
    checkpoint = {key: value.state_dict() for key, value in states.items()} | {"config": config}
    torch.save(checkpoint, folder / "0020000.pt")
    return folder / "0020000.pt"


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor, Tensor]:
    from transport import create_transport

    net, transport = model["model"], create_transport(use_cosine_loss=True, use_lognorm=True)
    y = torch.where(batch.dropped, CLASSES, batch.y)  # the network drops them itself when it trains
    with returning(transport, "sample", (1 - batch.t, batch.x1, batch.x0)):
        value, e = pulled(net, lambda: transport.training_losses(net, batch.x0, {"y": y})["loss"], batch.x0)
    return DIM * value, -DIM * e  # the mean over coordinates; the velocity runs from noise to data
