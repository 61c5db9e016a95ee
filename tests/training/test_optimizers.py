"""Optimisers against torch.optim's own, schedules at their ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mfdiag.training.optimizers import OptimizerMoments, schedule_factor, step_parameters
from mfdiag.training.spec import OptimizerSpec, ScheduleSpec


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (OptimizerSpec(), lambda p: torch.optim.Adam(p, lr=0.01)),
        (OptimizerSpec(betas=(0.5, 0.9), eps=1e-3), lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.5, 0.9), eps=1e-3)),
        (OptimizerSpec(name="adamw", weight_decay=0.3), lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.3)),
        (OptimizerSpec(name="sgd", betas=(0.8, 0)), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.8)),
        (OptimizerSpec(name="sgd", betas=(0, 0), clip=0.5), lambda p: torch.optim.SGD(p, lr=0.01)),
    ],
    ids=["adam", "adam-arguments", "adamw", "momentum", "clipped"],
)
def test_equals_torch(ours: OptimizerSpec, theirs: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (3, 2), "bias": (3,)}
    params = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    modules = {name: p.clone().requires_grad_() for name, p in params.items()}
    optimizer = theirs(list(modules.values()))
    zeros = {name: torch.zeros_like(p) for name, p in params.items()}
    moments = OptimizerMoments(zeros, zeros)
    for count in range(1, 6):
        for p in modules.values():
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        gradients = {name: p.grad.clone() for name, p in modules.items() if p.grad is not None}
        norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
        if ours.clip:
            assert norm > ours.clip, "or clipping is not tested"
            torch.nn.utils.clip_grad_norm_(list(modules.values()), ours.clip)
        optimizer.step()
        at, rate = (torch.tensor(value, dtype=torch.float64) for value in (float(count), 0.01))
        params, moments = step_parameters(ours, params, gradients, moments, at, rate, norm)
    for name, p in modules.items():
        torch.testing.assert_close(params[name], p.detach(), rtol=1e-10, atol=1e-12)


def test_schedules() -> None:
    counts = torch.arange(1, 11, dtype=torch.float64)
    factors = {
        name: torch.stack([schedule_factor(ScheduleSpec(name=name, warmup=2), 10, count) for count in counts])
        for name in ("constant", "cosine", "linear")
    }
    expected = torch.tensor([0.5, *[1] * 9]).double()
    torch.testing.assert_close(factors["constant"], expected)
    torch.testing.assert_close(factors["linear"][2:], torch.arange(8, 0, -1).double() / 8)
    torch.testing.assert_close(factors["cosine"][2:], (1 + torch.cos(torch.pi * torch.arange(8).double() / 8)) / 2)
    assert schedule_factor(ScheduleSpec(), 10, counts[0]) == 1
