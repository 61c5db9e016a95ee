"""Optimizers and schedules as functions of tensors, so that models with different rates step as one program."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mfdiag.training.loss import Params
from mfdiag.training.spec import OptimizerSpec, ScheduleSpec

__all__ = ["OptimizerMoments", "schedule_factor", "step_parameters"]

_CLIP_EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_


class OptimizerMoments(NamedTuple):
    """Running first and second moments of the gradient. SGD keeps its momentum in `first`; its `second` stays zero."""

    first: Params
    second: Params


def schedule_factor(schedule: ScheduleSpec, steps: int, count: Tensor) -> Tensor:
    """The learning rate of one step as a share of its largest value.

    Args:
        schedule: Shape of the schedule.
        steps: Number of steps of the whole run.
        count: Number of the step, from 1, 0-d.

    Returns:
        The share in [0, 1], 0-d.
    """
    factor = torch.ones_like(count)
    # progress is 0 at the first step after the warm-up, and would be 1 at the step after the last
    progress = ((count - 1 - schedule.warmup) / max(1, steps - schedule.warmup)).clamp(0, 1)
    if schedule.name == "cosine":
        factor = (1 + torch.cos(math.pi * progress)) / 2
    elif schedule.name == "linear":
        factor = 1 - progress
    return factor * (count / schedule.warmup).clamp(max=1) if schedule.warmup else factor


def step_parameters(
    optimizer: OptimizerSpec,
    params: Params,
    gradients: Params,
    moments: OptimizerMoments,
    count: Tensor,
    rate: Tensor,
    norm: Tensor,
) -> tuple[Params, OptimizerMoments]:
    """One step of an optimizer, equal to torch.optim's optimizer of the same name.

    Args:
        optimizer: Which optimizer, with its options.
        params: Parameters before the step.
        gradients: Their gradients.
        moments: Moments before the step.
        count: Number of the step, from 1, 0-d.
        rate: Learning rate, 0-d.
        norm: Norm of all gradients together, for clipping, 0-d.

    Returns:
        Parameters and moments after the step.
    """
    if optimizer.clip is not None:
        shrink = (optimizer.clip / (norm + _CLIP_EPS)).clamp(max=1)
        gradients = {name: gradient * shrink for name, gradient in gradients.items()}
    b1, b2 = optimizer.betas
    if optimizer.name == "sgd":
        first = {name: b1 * m + gradients[name] for name, m in moments.first.items()}
        return {name: p - rate * first[name] for name, p in params.items()}, OptimizerMoments(first, moments.second)
    first = {name: b1 * m + (1 - b1) * gradients[name] for name, m in moments.first.items()}
    second = {name: b2 * v + (1 - b2) * gradients[name].square() for name, v in moments.second.items()}
    size, root = rate / (1 - b1**count), (1 - b2**count).sqrt()
    decay = 1 - rate * optimizer.weight_decay  # 1 for adam
    params = {
        name: decay * p - size * first[name] / (second[name].sqrt() / root + optimizer.eps)
        for name, p in params.items()
    }
    return params, OptimizerMoments(first, second)
