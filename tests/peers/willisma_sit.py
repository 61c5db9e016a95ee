"""willisma/SiT: flow matching on ImageNet latents, data at t = 1; a teacher."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "willisma+SiT", "", "sit"
SHAPE, CLASSES, DIM = (4, 8, 8), 10, 256
SMALL = {
    "network": {
        "factory": "models:SiT",
        "arguments": {"input_size": 8, "depth": 2, "hidden_size": 32, "num_heads": 2, "num_classes": CLASSES},
        "arguments_from": {"input_size": "args.image_size / 8", "num_classes": "args.num_classes"},
    },
    "conditioning": {"classes": CLASSES, "null": CLASSES},
    "data": {"shape": list(SHAPE), "scale": 1},
}
TEACHER = True
DTYPES = (torch.float32,)  # its time features are float32


def network() -> nn.Module:
    from models import SiT

    model = SiT(**SMALL["network"]["arguments"])
    return nn.ModuleDict({"model": model, "ema": copy.deepcopy(model)})


def save(model: nn.Module, folder: Path) -> Path:
    # train.py saves in the middle of its loop; these are its keys, its arguments from its own parsers
    from train_utils import parse_transport_args

    parser = argparse.ArgumentParser()
    for name, value in {"model": "SiT-XL/2", "image-size": 64, "num-classes": CLASSES, "vae": "ema"}.items():
        parser.add_argument(f"--{name}", default=value)
    parse_transport_args(parser)
    states = {**model, "opt": torch.optim.AdamW(model["model"].parameters(), lr=1e-4, weight_decay=0)}
    rest = {"args": parser.parse_args([])}
    torch.save({key: value.state_dict() for key, value in states.items()} | rest, folder / "0050000.pt")
    return folder / "0050000.pt"


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor, Tensor]:
    from transport import create_transport

    net, transport = model["model"], create_transport()
    y = torch.where(batch.dropped, CLASSES, batch.y)  # the network drops them itself when it trains
    with returning(transport, "sample", (1 - batch.t, batch.x1, batch.x0)):
        value, e = pulled(net, lambda: transport.training_losses(net, batch.x0, {"y": y})["loss"], batch.x0)
    return DIM * value, -DIM * e  # its loss is the mean over coordinates, its velocity runs from noise to data
