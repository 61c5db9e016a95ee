"""Lyy-iiis/pMF, its release for torch: pixel MeanFlow, for sampling only."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from lyy_imeanflow import step
from torch import nn

__all__ = ["CARD", "CLASSES", "CODE", "DTYPES", "REPOSITORY", "SHAPE", "SMALL", "network", "save", "step"]

REPOSITORY, CODE, CARD = "Lyy-iiis+pMF@torch", "", "pmf"
SHAPE, CLASSES = (3, 16, 16), 10
SMALL = {
    "network": {
        "factory": "models.pmfDiT:pmfDiT",
        "arguments": {"input_size": 16, "patch_size": 4, "num_classes": CLASSES, "hidden_size": 32, "depth": 3}
        | {"num_heads": 2, "aux_head_depth": 1},
    },
    "conditioning": {"classes": CLASSES, "null": CLASSES},
    "data": {"shape": list(SHAPE), "mean": 0, "std": 1},
}
DTYPES = (torch.float32,)  # its attention and time features are float32


def network() -> nn.Module:
    import pmf
    from models import pmfDiT

    pmfDiT.pmfDiT_B_16 = partial(pmfDiT.pmfDiT, **SMALL["network"]["arguments"])
    return pmf.pixelMeanFlow("pmfDiT_B_16", img_size=16, num_classes=CLASSES)


def save(model: nn.Module, folder: Path) -> Path:
    torch.save(model.state_dict(), folder / "pMF-B-16.pt")  # evaluate.py loads nothing else
    return folder / "pMF-B-16.pt"
