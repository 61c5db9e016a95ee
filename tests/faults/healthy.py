"""Healthy models: right scripts of many kinds, at many stages, on which no finding should be critical."""

from __future__ import annotations

import math
from functools import partial

import torch
from cases import Case
from planted import guided
from torch import Tensor
from training_loop import Step, sorted_pairs


def _velocity(s: Step) -> Tensor:
    return s.ema_of(s.x, s.t, s.t).detach()


def _mixed(beta: float, s: Step) -> Tensor:
    return s.v + beta * (_velocity(s) - s.v)


def _difference(s: Step, h: float = 5e-3) -> Tensor:
    """MeanFlow's target with a central difference along the path."""
    up, down = (s.u_of(s.x + e * s.v, s.r, s.t + e) for e in (h, -h))
    return s.u - (s.v - s.gap * (up - down) / (2 * h)).detach()


def _alpha_flow(alpha: float, s: Step) -> Tensor:
    """alpha v + (1 - alpha) u(x_s, r, s) with s = alpha r + (1 - alpha) t (arXiv 2510.20771)."""
    inner = alpha * s.r + (1 - alpha) * s.t
    x = s.x - (s.t - inner).view(s.gap.shape) * s.v
    return (s.u - (alpha * s.v + (1 - alpha) * s.u_of(x, s.r, inner)).detach()) / math.sqrt(alpha)


def _shortcut(s: Step) -> Tensor:
    """Two half steps of the average; flow matching where r = t (arXiv 2410.12557)."""
    middle = (s.r + s.t) / 2
    first = s.ema_of(s.x, middle, s.t)
    second = s.ema_of(s.x - s.gap / 2 * first, s.r, middle)
    return s.u - torch.where(s.gap > 0, (first + second) / 2, s.v).detach()


def _uniform(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    both = torch.rand(2, n, generator=generator)
    return both.min(0).values, both.max(0).values


_ALL = {"networks": ("mlp", "dit", "images")}
_LABELS = {"labeled": True, "options": {"guidance": "meanflow:1,drop=0.1"}}

HEALTHY = [
    Case("plain", {}, save_at=(0.3, 0.6), **_ALL),
    Case("long", {}, factor=3.0, ema_decay=0.999, networks=("mlp",)),
    Case("weighted", {"power": 1.0}, severity="p1", options={"weighting": "adaptive:1,0.001"}),
    Case("weighted", {"power": 0.5}, severity="p05", options={"weighting": "adaptive:0.5,0.001"}, **_ALL),
    Case("ema_tangent", {"tangent": partial(_mixed, 0.5)}, severity="half"),
    Case("ema_tangent", {"tangent": partial(_mixed, 1.0)}, severity="whole", networks=("mlp",)),
    Case("self_tangent", {"tangent": lambda s: s.u_of(s.x, s.t, s.t).detach()}, **_ALL),
    Case("labels", {"dropout": 0.1}, **_LABELS),
    Case("guided", {"guided": partial(guided, 2.0), "dropout": 0.1}, labeled=True,
         options={"guidance": "meanflow:2,drop=0.1"}),
    Case("alpha_flow", {"residual": partial(_alpha_flow, 0.5)}),
    Case("shortcut", {"residual": _shortcut}, networks=("mlp",)),
    Case("difference", {"residual": _difference}, networks=("mlp",)),
    Case("uniform_times", {"times": _uniform}, times="uniform", networks=("mlp",)),
    Case("few_apart", {"times": partial(sorted_pairs, share=0.25)}, times="logit_normal:-0.4,1,r_ne_t=0.25",
         networks=("mlp",)),
    Case("short", {}, factor=0.4, **_ALL),
    Case("annealed", {"schedule": lambda p: 0.5 + 0.5 * math.cos(math.pi * p), "clip": 1.0,
                      "optimizer": partial(torch.optim.AdamW, weight_decay=0.01)}),
    Case("small", {"architecture": {"hidden": 32, "depth": 2}}, networks=("mlp",)),
    Case("wide", {"architecture": {"hidden": 128}}, networks=("mlp",)),
    Case("slow", {"rate": 1e-3}, factor=1.5, networks=("mlp",)),
    Case("small_steps", {"batch": 64, "rate": 1e-3}, networks=("mlp",)),
    Case("fast_times", {"architecture": {"time_scale": 5.0}}, networks=("dit",)),
]  # fmt: skip
