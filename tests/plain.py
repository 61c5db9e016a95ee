"""Each method's loss of one sample as its paper writes it: plain autograd and detach, x_t and x_s from the ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.functional import jvp

from mfdiag.flow.draw import Draws
from mfdiag.flow.seeds import uniforms
from mfdiag.models.networks.mlp import MLP

FURTHER = 2**40  # where the numbers of partners start


@dataclass(frozen=True)
class One:
    """Sample i of `draws`: ends x0, x1 and times r < t, and the networks; `path` gives its points."""

    module: MLP
    ema: nn.Module
    teacher: nn.Module
    draws: Draws
    i: int

    def __post_init__(self) -> None:
        batch = self.draws.batch(np.array([self.i]))
        for name in ("x0", "x1", "r", "t", "labels"):
            object.__setattr__(self, name, getattr(batch, name))

    x0: Tensor = None  # type: ignore[assignment]
    x1: Tensor = None  # type: ignore[assignment]
    r: Tensor = None  # type: ignore[assignment]
    t: Tensor = None  # type: ignore[assignment]
    labels: Tensor | None = None

    @property
    def v_c(self) -> Tensor:
        return self.x1 - self.x0

    def at(self, s: Tensor) -> Tensor:
        return (1 - s) * self.x0 + s * self.x1

    def u(self, x: Tensor, r: Tensor, t: Tensor, net: nn.Module | None = None) -> Tensor:
        return (net or self.module)(x, r, t, self.labels)

    def uniform(self, purpose: str) -> Tensor:
        return torch.as_tensor(uniforms(self.draws.seed, purpose, np.array([self.i]), 1)[:, 0])


def square(e: Tensor) -> Tensor:
    return (e**2).sum()


def meanflow(s: One, tangent: Tensor | None = None, target: Tensor | None = None) -> Tensor:
    """|u - sg[target - (t-r) (du/dx tangent + du/dt)]|^2."""
    tangent, target = s.v_c if tangent is None else tangent, s.v_c if target is None else target
    ones = torch.ones_like(s.t)
    du = jvp(lambda x, t: s.u(x, s.r, t), (s.at(s.t), s.t), (tangent.detach(), ones))[1]
    return square(s.u(s.at(s.t), s.r, s.t) - (target - (s.t - s.r) * du).detach())


def instantaneous(s: One, net: nn.Module) -> Tensor:
    return s.u(s.at(s.t), s.t, s.t, net)


def alpha_flow(s: One, alpha: float) -> Tensor:
    middle = alpha * s.r + (1 - alpha) * s.t
    target = alpha * s.v_c + (1 - alpha) * s.u(s.at(middle), s.r, middle).detach()
    return square(s.u(s.at(s.t), s.r, s.t) - target) / alpha


def composed(s: One, middle: Tensor, net: nn.Module | None = None) -> Tensor:
    """Two parts of the interval as target: SplitMeanFlow, and shortcuts of any length with the midpoint."""
    x_t = s.at(s.t)
    late = s.u(x_t, middle, s.t, net)
    early = s.u(x_t - (s.t - middle) * late, s.r, middle, net)
    target = ((middle - s.r) * early + (s.t - middle) * late) / (s.t - s.r)
    return square(s.u(x_t, s.r, s.t) - target.detach())


def split_meanflow(s: One) -> Tensor:
    lam = s.uniform("split")
    return composed(s, (1 - lam) * s.t + lam * s.r)


def finite_difference(s: One, step: float) -> Tensor:
    du = (s.u(s.at(s.t + step), s.r, s.t + step) - s.u(s.at(s.t - step), s.r, s.t - step)) / (2 * step)
    return square(s.u(s.at(s.t), s.r, s.t) - (s.v_c - (s.t - s.r) * du).detach())


def shortcut(s: One, steps: int) -> Tensor:
    """The longest power of two that fits; the finest halves are instantaneous, and what is shorter is flow matching."""
    fitting = [2.0**-k for k in range(20) if 2 / steps <= 2.0**-k <= float(s.t - s.r)]
    if not fitting:
        return flow_matching(s)
    d, x = max(fitting) / 2, s.at(s.t)

    def half_step(x: Tensor, t: Tensor) -> Tensor:
        return s.u(x, t - d if d > 1 / steps else t, t, s.ema)

    first = half_step(x, s.t)
    target = (first + half_step(x - d * first, s.t - d)) / 2
    return square(s.u(x, s.t - 2 * d, s.t) - target.detach())


def heun(s: One, x: Tensor, start: Tensor, stop: Tensor, steps: int) -> Tensor:
    times = [start + (stop - start) * k / steps for k in range(steps + 1)]
    for now, then in pairwise(times):
        k1 = s.u(x, now, now, s.teacher)
        k2 = s.u(x + (then - now) * k1, then, then, s.teacher)
        x = x + (then - now) * (k1 + k2) / 2
    return x.detach()


def cmt_from_noise(s: One, steps: int) -> Tensor:
    x_t = heun(s, s.x1, torch.ones_like(s.t), s.t, steps)
    x_r = heun(s, x_t, s.t, s.r, steps)
    return square(s.u(x_t, s.r, s.t) - (x_t - x_r) / (s.t - s.r))


def cmt(s: One, steps: int) -> Tensor:
    chord = (s.at(s.t) - heun(s, s.at(s.t), s.t, s.r, steps)) / (s.t - s.r)
    return square(s.u(s.at(s.t), s.r, s.t) - chord)


def restricted_meanflow(s: One, gap: Tensor) -> Tensor:
    short = One(s.module, s.ema, s.teacher, s.draws, s.i)
    object.__setattr__(short, "r", s.t - gap)
    return meanflow(short)


def modular_meanflow(s: One, modulation: float) -> Tensor:
    ones = torch.ones_like(s.t)
    du = jvp(lambda x, t: s.u(x, s.r, t), (s.at(s.t), s.t), (s.v_c, ones), create_graph=True)[1]
    modulated = modulation * du + (1 - modulation) * du.detach()
    return square(s.u(s.at(s.t), s.r, s.t) + (s.t - s.r) * modulated - s.v_c)


def terminal_velocity(s: One, target: nn.Module) -> Tensor:
    x_t = s.at(s.t)

    def displacement(r: Tensor) -> Tensor:
        return (r - s.t) * s.u(x_t, r, s.t)

    f, speed = jvp(displacement, (s.r,), (torch.ones_like(s.r),), create_graph=True)
    end = (x_t + f).detach()
    return square(speed - s.u(end, s.r, s.r, target).detach()) + square(s.u(s.at(s.r), s.r, s.r) - s.v_c)


def flow_matching(s: One) -> Tensor:
    return square(s.u(s.at(s.t), s.t, s.t) - s.v_c)


def stable_velocity(s: One, references: int) -> Tensor:
    law, x_t = s.draws.data, s.at(s.t)
    points, logits = [s.x0], [torch.zeros(())]
    numbers = uniforms(s.draws.seed, "further data", np.array([s.i]), (references - 1) * law.width)
    for k in range(references - 1):
        x0, label = law.sample(numbers[:, k * law.width : (k + 1) * law.width])
        if s.labels is None or label is None or label[0] == s.labels[0]:
            points.append(torch.as_tensor(x0).double())
    normal = torch.distributions.Normal(torch.zeros_like(x_t), s.t)
    logits = [normal.log_prob(x_t - (1 - s.t) * x0).sum() for x0 in points]
    weights = torch.stack(logits).softmax(0)
    average = sum(w * (x_t - x0) / s.t for w, x0 in zip(weights, points, strict=True))
    return meanflow(s, average, average)  # type: ignore[arg-type]


def features(s: One) -> Tensor:
    entries = [s.at(s.t), s.r[:, None], s.t[:, None]] + ([] if s.module.label is None else [s.module.label(s.labels)])
    middle = len(s.module.layers) // 2
    return s.module.layers[: middle + 1](torch.cat(entries, 1))[0]


def dispersion(h: Tensor, temperature: float) -> Tensor:
    """log mean_ij exp(-|h_i - h_j|^2 / (tau d)) of the features [B, d] of a batch."""
    return (-(h[:, None] - h).square().mean(2) / temperature).exp().mean().log()


def dispersive(s: One, coefficient: float, temperature: float, batch: int) -> Tensor:
    """`batch` times the batch's own loss, the other samples held fixed."""
    first = s.i - s.i % batch
    members = [features(One(s.module, s.ema, s.teacher, s.draws, first + k)).detach() for k in range(batch)]
    members[s.i - first] = features(s)
    return meanflow(s) + coefficient * batch * dispersion(torch.stack(members), temperature)


def dispersive_of_partners(s: One, coefficient: float, temperature: float, partners: int) -> Tensor:
    h, spread = features(s), torch.zeros(())
    for k in range(partners):
        other = One(s.module, s.ema, s.teacher, s.draws, FURTHER + partners * s.i + k)
        distance = (h - features(other)).square().mean()
        spread = spread + torch.exp(-distance / temperature) / partners
    return meanflow(s) + coefficient * spread.log()


def solution(s: One, x: Tensor, t: Tensor, end: Tensor, net: nn.Module | None = None) -> Tensor:
    """The flow map from x at t to `end`, as SoFlow, Align Your Flow and self-distillation write it."""
    return x + (end - t) * s.u(x, end, t, net)


def soflow(s: One, ratio: float, flow_matching: float, power: float = 0.0) -> Tensor:
    later = s.t + ratio * (s.r - s.t)
    x_l = s.at(s.t) + s.v_c * (later - s.t)
    error = square(solution(s, s.at(s.t), s.t, s.r) - solution(s, x_l, later, s.r).detach())
    weight = 1 / ((s.t - later) * (s.t - s.r))
    velocity = square(s.u(s.at(s.t), s.t, s.t) - s.v_c)
    if power:  # by the mean squares of the error and of the quotient of differences
        dim = s.v_c.numel()
        weight = weight / (error.detach() / (s.t - later) ** 2 / dim + 0.01) ** power
        velocity = velocity / (velocity.detach() / dim + 0.01) ** power
    return flow_matching * velocity + (1 - flow_matching) * (weight * error).sum()


def euler_mean_flow(s: One, step: float) -> Tensor:
    """Velocities; samples whose interval is not longer than the step regress v_c."""
    x_t, target = s.at(s.t), s.v_c
    if float(s.t - s.r) > step:
        x = x_t - step * s.u(x_t, s.t, s.t)
        slope = (s.u(x_t, s.r, s.t) - s.u(x, s.r, s.t - step)) / step
        target = target - (s.t - s.r - step) * slope
    return square(s.u(x_t, s.r, s.t) - target.detach())


def euler_mean_flow_of_ends(s: One, step: float) -> Tensor:
    """Ends x_0: the paper's form for x-prediction, its time reversed."""

    def end(x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return x - t * s.u(x, r, t)

    x_t, target, prediction = s.at(s.t), s.x0, end(s.at(s.t), s.r, s.t)
    if float(s.t - s.r) > step:
        x = x_t + step / s.t * (end(x_t, s.t, s.t) - x_t)
        factor = (s.t - s.r - step) * s.t / (s.r.clamp_min(0.02) * step)
        target = target + factor * (end(x, s.r, s.t - step) - prediction)
    return square(prediction - target.detach()) / s.t.square().sum()


def consistency(s: One, velocity: Tensor, end: Tensor, warmup: float) -> Tensor:
    """-df/dt of the map to `end` along `velocity`, where the second of its parts has a factor."""
    x_t, velocity = s.at(s.t), velocity.detach()
    du = jvp(lambda x, t: s.u(x, end, t), (x_t, s.t), (velocity, torch.ones_like(s.t)))[1]
    return s.u(x_t, end, s.t) - velocity + warmup * (s.t - end) * du


def normalised(s: One, tangent: Tensor, end: Tensor, constant: float) -> Tensor:
    u, tangent = s.u(s.at(s.t), end, s.t), tangent.detach()
    return square(u - (u.detach() - tangent / (tangent.square().sum().sqrt() + constant)))


def scm(s: One, constant: float, warmup: float) -> Tensor:
    zero = torch.zeros_like(s.t)
    return normalised(s, consistency(s, s.v_c, zero, warmup), zero, constant)


def eulerian_distillation(s: One, constant: float, warmup: float) -> Tensor:
    return normalised(s, consistency(s, instantaneous(s, s.teacher), s.r, warmup), s.r, constant)


def facm(s: One, power: float, velocity: Tensor) -> Tensor:
    """The repository's loss in its own time, where data is at 1 and velocities point to the data; d times its means."""
    t, v, x = 1 - s.t, -velocity.detach(), s.at(s.t)

    def mean_velocity(x: Tensor, t: Tensor) -> Tensor:
        return -s.u(x, torch.zeros_like(t), 1 - t)

    anchor = -s.u(x, s.t, s.t)
    cosine = (anchor * v).sum() / (anchor.norm() * v.norm())
    F, slope = mean_velocity(x, t), jvp(mean_velocity, (x, t), (v, torch.ones_like(t)))[1]
    g = (F - (v + (1 - t) * slope)).clamp(-1, 1)
    target = (F - (1 - t**power) * g).detach()
    error = (F - target).square().mean()
    consistent = error / (error + 1e-3).sqrt().detach() * torch.cos(t * torch.pi / 2).sum()
    return x.numel() * ((anchor - v).square().mean() + 1 - cosine + consistent)


def lagrangian_distillation(s: One) -> Tensor:
    """The inner product whose gradient the paper gives, without its factor t-r, and twice it as a square has."""
    x = s.at(s.t)
    f, speed = jvp(lambda r: solution(s, x, s.t, r), (s.r,), (torch.ones_like(s.r),))
    e = (speed - s.u(f, s.r, s.r, s.teacher)).detach()
    return 2 * (solution(s, x, s.t, s.r) * -e).sum() / (s.t - s.r).sum()


def lagrangian_self_distillation(s: One) -> Tensor:
    x = s.at(s.t)
    f, speed = jvp(lambda r: solution(s, x, s.t, r), (s.r,), (torch.ones_like(s.r),), create_graph=True)
    return square(speed - s.u(f.detach(), s.r, s.r).detach()) + flow_matching(s)


def eulerian_self_distillation(s: One, jacobian: bool) -> Tensor:
    x, ones = s.at(s.t), torch.ones_like(s.t)
    v = s.u(x, s.t, s.t).detach()
    slope = jvp(lambda t: solution(s, x, t, s.r), (s.t,), (ones,), create_graph=True)[1]
    transport = jvp(lambda x: solution(s, x, s.t, s.r), (x,), (v,), create_graph=True)[1]
    return square(slope + (transport if jacobian else transport.detach())) + flow_matching(s)


def progressive_self_distillation(s: One, share: Tensor) -> Tensor:
    middle = s.r + share * (s.t - s.r)
    x_s = solution(s, s.at(s.t), s.t, middle)
    error = solution(s, s.at(s.t), s.t, s.r) - solution(s, x_s, middle, s.r).detach()
    return square(error / (s.t - s.r)) + flow_matching(s)


LOSSES: dict[str, Callable[[One], Tensor]] = {
    "meanflow": meanflow,
    "ema_tangent": lambda s: meanflow(s, instantaneous(s, s.ema)),
    "self_tangent": lambda s: meanflow(s, instantaneous(s, s.module)),
    "head_tangent": lambda s: meanflow(s, s.module.velocity(s.at(s.t), s.r, s.t, s.labels)),  # type: ignore[operator]
    "teacher_tangent": lambda s: meanflow(s, instantaneous(s, s.teacher)),
    "teacher_target": lambda s: meanflow(s, None, instantaneous(s, s.teacher)),
    "teacher": lambda s: meanflow(s, *[instantaneous(s, s.teacher)] * 2),
    "distillation": lambda s: meanflow(s, *[instantaneous(s, s.ema)] * 2),
    "plane:0.3,-0.5": lambda s: meanflow(
        s, s.v_c + 0.3 * (instantaneous(s, s.ema) - s.v_c), s.v_c - 0.5 * (instantaneous(s, s.ema) - s.v_c)
    ),
    "alpha_flow": lambda s: alpha_flow(s, 0.5),
    "alpha_flow:0.1": lambda s: alpha_flow(s, 0.1),
    "alpha_flow:1": lambda s: square(s.u(s.at(s.t), s.r, s.t) - s.v_c),
    "split_meanflow": split_meanflow,
    "shortcut": lambda s: shortcut(s, 128),
    "shortcut:4": lambda s: shortcut(s, 4),
    "shortcut:0": lambda s: composed(s, (s.r + s.t) / 2, s.ema),
    "shortcut:0,0": lambda s: composed(s, (s.r + s.t) / 2),
    "finite_difference": lambda s: finite_difference(s, 0.005),
    "finite_difference:0.2": lambda s: finite_difference(s, 0.2),
    "finite_difference:0.01,1": lambda s: finite_difference(s, 0.01),
    "cmt": lambda s: cmt_from_noise(s, 4),
    "cmt:1": lambda s: cmt_from_noise(s, 1),
    "cmt:4,0": lambda s: cmt(s, 4),
    "cmt:1,0": lambda s: cmt(s, 1),
    "restricted_meanflow": lambda s: restricted_meanflow(s, (s.t - s.r).clamp_max(0.5)),
    "restricted_meanflow:0.2": lambda s: restricted_meanflow(s, (s.t - s.r).clamp_max(0.2)),
    "restricted_meanflow:0.2,1": lambda s: restricted_meanflow(s, 0.2 * (s.t - s.r)),
    "modular_meanflow": lambda s: modular_meanflow(s, 0.5),
    "modular_meanflow:1": lambda s: modular_meanflow(s, 1.0),
    "terminal_velocity": lambda s: terminal_velocity(s, s.ema),
    "terminal_velocity:0": lambda s: terminal_velocity(s, s.module),
    "flow_matching": flow_matching,
    "soflow": lambda s: soflow(s, 0.002, 0.75),
    "soflow:0.3,0.5": lambda s: soflow(s, 0.3, 0.5),
    "soflow:0.3,0.5,0.75": lambda s: soflow(s, 0.3, 0.5, 0.75),
    "euler_mean_flow": lambda s: euler_mean_flow(s, 0.05),
    "euler_mean_flow:0.1,1": lambda s: euler_mean_flow_of_ends(s, 0.1),
    "scm": lambda s: scm(s, 0.1, 1.0),
    "scm:0.5,0.3": lambda s: scm(s, 0.5, 0.3),
    "facm": lambda s: facm(s, 0.5, s.v_c),
    "facm:2,1": lambda s: facm(s, 2.0, instantaneous(s, s.teacher)),
    "eulerian_distillation": lambda s: eulerian_distillation(s, 0.1, 0.99),
    "eulerian_distillation:1,0.5": lambda s: eulerian_distillation(s, 1.0, 0.5),
    "lagrangian_distillation": lagrangian_distillation,
    "lagrangian_self_distillation": lagrangian_self_distillation,
    "eulerian_self_distillation": lambda s: eulerian_self_distillation(s, False),
    "eulerian_self_distillation:1": lambda s: eulerian_self_distillation(s, True),
    "progressive_self_distillation": lambda s: progressive_self_distillation(s, s.uniform("split")),
    "progressive_self_distillation:1": lambda s: progressive_self_distillation(s, torch.full_like(s.t, 0.5)),
    "stable_velocity:5": lambda s: stable_velocity(s, 5),
    "dispersive": lambda s: dispersive(s, 0.5, 0.5, 128),
    "dispersive:2,0.3,0,4": lambda s: dispersive(s, 2.0, 0.3, 4),
    "dispersive:0.5,0.5,4": lambda s: dispersive_of_partners(s, 0.5, 0.5, 4),
    "dispersive:2,0.3,2": lambda s: dispersive_of_partners(s, 2.0, 0.3, 2),
}
"""Specification -> loss. Every registered estimator is here: a test says so."""
