"""Optimisers and schedules as functions of tensors, so that many models with their own rates step as one program."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mfdiag.training.loss import Params
from mfdiag.training.spec import Optimizer, Schedule

__all__ = ["OptimizerMoments", "schedule_factor", "step_parameters"]


class OptimizerMoments(NamedTuple):
    """Running first and second moment of the gradient; SGD keeps its momentum in `first` and leaves `second` zero."""

    first: Params
    second: Params


def schedule_factor(schedule: Schedule, steps: int, count: Tensor) -> Tensor:
    """The learning rate of step number `count` (0-d, from 1) of `steps`, as a share of its largest value."""
    factor = torch.ones_like(count)
    # the first step after the warm-up has progress 0, and a step after the last would have 1
    progress = ((count - 1 - schedule.warmup) / max(1, steps - schedule.warmup)).clamp(0, 1)
    if schedule.name == "cosine":
        factor = (1 + torch.cos(math.pi * progress)) / 2
    elif schedule.name == "linear":
        factor = 1 - progress
    return factor * (count / schedule.warmup).clamp(max=1) if schedule.warmup else factor


def step_parameters(
    optimizer: Optimizer,
    params: Params,
    gradients: Params,
    moments: OptimizerMoments,
    count: Tensor,
    rate: Tensor,
    norm: Tensor,
) -> tuple[Params, OptimizerMoments]:
    """Parameters and moments after step number `count` (0-d, from 1) at the learning rate `rate` (0-d).

    `norm` is the norm of all `gradients` together, for clipping. Elementwise otherwise. Equal to torch.optim's
    optimisers of the same names.
    """
    if optimizer.clip is not None:
        shrink = (optimizer.clip / (norm + 1e-6)).clamp(max=1)
        gradients = {name: gradient * shrink for name, gradient in gradients.items()}
    b1, b2 = optimizer.betas
    if optimizer.name == "sgd":
        first = {name: b1 * m + gradients[name] for name, m in moments.first.items()}
        return {name: p - rate * first[name] for name, p in params.items()}, OptimizerMoments(first, moments.second)
    first = {name: b1 * m + (1 - b1) * gradients[name] for name, m in moments.first.items()}
    second = {name: b2 * v + (1 - b2) * gradients[name].square() for name, v in moments.second.items()}
    size, root = rate / (1 - b1**count), (1 - b2**count).sqrt()
    kept = 1 - rate * optimizer.weight_decay  # 1 for adam
    params = {
        name: kept * p - size * first[name] / (second[name].sqrt() / root + optimizer.eps) for name, p in params.items()
    }
    return params, OptimizerMoments(first, second)
