"""A small specification that tests vary."""

from __future__ import annotations

from typing import Any

from mfdiag.training.spec import TrainSpec

__all__ = ["spec_of"]


def spec_of(**changes: Any) -> TrainSpec:
    values = {
        "data": "gaussian:2,0.5,0.3",
        "model": {"name": "mlp", "arguments": {"dim": 2, "hidden": 8, "depth": 1}},
        "times": "logit_normal:-0.4,1,0.75",
        "loss": {"beta": 0.5, "anchor": {"lambda": 0.5, "delta_max": 0.01}},
        "batch_size": 16,
        "steps": 12,
        "learning_rate": 0.01,
        "ema_decay": 0.9,
        "seed": 3,
        "log_every": 5,
        "save_every": 4,
    }
    return TrainSpec.model_validate(values | changes)
