"""Lyy-iiis/imeanflow, its release for torch: improved MeanFlow, for sampling only."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from interception import Batch
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "Lyy-iiis+imeanflow@torch", "", "imeanflow"
SHAPE, CLASSES = (4, 8, 8), 10
SMALL = {
    "network": {
        "arguments": {
            "size": "imfDiT",
            "input_size": 8,
            "num_classes": CLASSES,
            "hidden_size": 32,
            "depth": 3,
            "num_heads": 2,
            "aux_head_depth": 1,
        }
    },
    "conditioning": {"classes": CLASSES, "null": CLASSES},
    "data": {"shape": list(SHAPE), "mean": 0, "std": 1},
}
DTYPES = (torch.float32,)  # its attention and time features are float32


def network() -> nn.Module:
    import imf
    from models import imfDiT

    arguments = {name: value for name, value in SMALL["network"]["arguments"].items() if name != "size"}
    imfDiT.small = partial(imfDiT.imfDiT, **arguments)
    return imf.iMeanFlow("small", img_size=8, num_classes=CLASSES)


def save(model: nn.Module, folder: Path) -> Path:
    torch.save(model.state_dict(), folder / "iMF-B-2.pth")  # evaluate.py loads nothing else
    return folder / "iMF-B-2.pth"


def step(model: nn.Module, batch: Batch) -> Tensor:
    x = torch.lerp(batch.x0, batch.x1, batch.t.view(-1, 1, 1, 1))
    one, zero = torch.ones(1), torch.zeros(1)
    with torch.no_grad():
        each = [
            model.sample_one_step(x[[i]], batch.y[[i]], 0, torch.stack([batch.t[i], batch.r[i]]), one, zero, one)
            for i in range(len(x))
        ]
    return torch.cat(each)
