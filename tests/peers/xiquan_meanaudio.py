"""xiquan-li/MeanAudio: a sequence network conditioned on text, with guidance by the empty text's features."""

from __future__ import annotations

import copy
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "xiquan-li+MeanAudio", "", "meanaudio"
LENGTH, WORDS, TEXT = 8, 5, 6
SHAPE, CLASSES = (LENGTH, 4), 0
SIZES = {
    "latent_dim": 4,
    "text_dim": TEXT,
    "text_c_dim": TEXT,
    "hidden_dim": 32,
    "depth": 3,
    "fused_depth": 1,
    "num_heads": 2,
    "latent_seq_len": LENGTH,
    "text_seq_len": WORDS,
    "use_rope": True,
}
SMALL = {
    "network": {"factory": "meanaudio.model.networks:MeanAudio", "arguments": SIZES},
    "data": {"shape": list(SHAPE)},
}
DTYPES = (torch.float32,)  # its time features are float32
DIVIDED = LENGTH * 4


def conditions(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    shapes = {"text_f": (WORDS, TEXT), "text_f_c": (TEXT,)}
    return {name: rng.standard_normal((n, *shape)).astype(np.float32) for name, shape in shapes.items()}


def network() -> nn.Module:
    from meanaudio.model.networks import MeanAudio
    from nitrous_ema import PostHocEMA

    latents = {"latent_mean": torch.zeros(4), "latent_std": torch.ones(4)}
    empty = {"empty_string_feat": torch.randn(WORDS, TEXT), "empty_string_feat_c": torch.randn(TEXT)}
    model = MeanAudio(**SIZES, **latents, **empty)
    return nn.ModuleDict({"weights": model, "ema": PostHocEMA(copy.deepcopy(model), sigma_rels=[0.05, 0.1])})


def save(model: nn.Module, folder: Path) -> Path:
    # RunnerMeanFlow.save_checkpoint needs a GPU; these are its keys
    optimizer = torch.optim.AdamW(model["weights"].parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=lambda step: 1.0)
    states = {"weights": model["weights"], "optimizer": optimizer, "scheduler": schedule, "ema": model["ema"]}
    checkpoint = {"it": 10000} | {key: value.state_dict() for key, value in states.items()}
    torch.save(checkpoint, folder / "small_ckpt_last.pth")
    return folder / "small_ckpt_last.pth"


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor, Tensor]:
    import meanaudio.model.mean_flow as code

    net, objective = model["weights"], code.MeanFlow()
    own = [batch.conditions[name].to(batch.x0) for name in ("text_f", "text_f_c")]
    empty = [net.empty_string_feat, net.empty_string_feat_c]
    # the runner drops a text in place, so that the text said not to be dropped is dropped too
    texts = [torch.where(batch.dropped.view(-1, *[1] * (o.ndim - 1)), e, o) for o, e in zip(own, empty, strict=True)]

    def loss() -> Tensor:
        return objective.loss(net, batch.x0, *texts, *texts, *empty)

    plain, weights = code.adaptive_l2_loss, {} if weighted else {"gamma": 1.0}  # a power of 1 - gamma
    with (
        returning(objective, "sample_t_r", (batch.t, batch.r)),
        returning(torch, "randn_like", batch.x1),
        mock.patch.object(code, "adaptive_l2_loss", lambda error: plain(error, **weights)),
    ):
        return pulled(net, lambda: loss()[0], batch.x0)
