"""ASLP-lab/MeanVC: spectrograms conditioned on content, speaker, prompts and on the clean sample itself."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "ASLP-lab+MeanVC", "", "meanvc"
FRAMES, BINS, FEATURES = 12, 8, 256  # the width of content and speaker is fixed
SHAPE, CLASSES = (FRAMES, BINS), 0
SIZES = {"dim": 32, "depth": 2, "dim_head": 16, "mel_dim": BINS, "chunk_size": 4}
SMALL = {"network": {"arguments": SIZES}, "data": {"shape": list(SHAPE)}}
DTYPES = (torch.float32,)  # its time features are float32
DIVIDED = FRAMES * BINS
ABSENT = (
    "encodec",
    "fairseq.checkpoint_utils",
    "fairseq.dataclass.utils",
    "funasr",
    "jiwer",
    "librosa.filters",
    "matplotlib.pylab",
    "s3prl.upstream.interfaces",
    "torchaudio.functional.functional",
    "torchaudio.transforms",
    "wandb",
)


def conditions(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    shapes = {"bn": (FRAMES, FEATURES), "xvector": (FEATURES,), "prompt": (10, BINS)}
    return {name: rng.standard_normal((n, *shape)).astype(np.float32) for name, shape in shapes.items()}


def beside(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"cache": x}


def network() -> nn.Module:
    from ema_pytorch import EMA
    from src.model.backbones.dit import DiT

    model = DiT(heads=2, ff_mult=2, bn_dim=FEATURES, conv_layers=4, dropout=0.0, qk_norm="rms_norm", **SIZES)
    return nn.ModuleDict({"model": model, "ema_model": EMA(copy.deepcopy(model), include_online_model=False)})


def save(model: nn.Module, folder: Path) -> Path:
    # Trainer.save_checkpoint needs accelerate's state; these are its keys
    optimizer = torch.optim.AdamW(model["model"].parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=lambda step: 1.0)
    states = {**model, "optimizer": optimizer, "scheduler": schedule}
    checkpoint = {f"{key}_state_dict": value.state_dict() for key, value in states.items()}
    torch.save(checkpoint | {"step": 10000}, folder / "model_10000.pt")
    return folder / "model_10000.pt"


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor, Tensor]:
    from src.model.cfm_mean_flow import MeanFlow

    # p = 0 is no weight; with p = 0.5 each frame has its own, which the card does not cover
    net, objective = model["model"], MeanFlow(cfg_ratio=0.1, cfg_scale=2.0, p=0.0)
    lengths = torch.full((len(batch.t),), FRAMES)
    own = [batch.conditions[name].to(batch.x0) for name in ("bn", "xvector", "prompt")]
    with (
        returning(objective, "sample_t_r", (batch.t, batch.r)),
        returning(torch, "randn_like", batch.x1),
        returning(torch, "rand", 1.0 - batch.dropped.to(batch.t)),  # a condition is dropped where this is small
    ):
        value, e = pulled(net, lambda: objective.loss(net, batch.x0, *own, lengths)[0], batch.x0)
    return (DIVIDED * value, DIVIDED * e) if weighted else (value, e)
