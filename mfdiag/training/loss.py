"""The loss of one model and its update, as functions of a dict of parameters."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from mfdiag.flow.weighting import parse_weighting
from mfdiag.training.spec import Loss, TrainSpec

__all__ = ["Batch", "Params", "State", "adam", "loss_of", "start", "update"]

Params = dict[str, Tensor]
_BETAS = (0.9, 0.999)
_EPS = 1e-8


class Batch(NamedTuple):
    """n samples: x_t and the conditional velocity v_c [n, *shape], times r and t, the anchor's delta [n], labels."""

    x_t: Tensor
    v_c: Tensor
    r: Tensor
    t: Tensor
    delta: Tensor | None = None
    labels: Tensor | None = None


class State(NamedTuple):
    """All that training changes: parameters, their average, Adam's moments, and how many steps are done."""

    params: Params
    ema: Params
    first: Params
    second: Params
    step: int


def start(module: nn.Module) -> State:
    """The state before the first step."""
    params = {name: p.detach().clone() for name, p in module.named_parameters()}
    zeros = {name: torch.zeros_like(p) for name, p in params.items()}
    return State(params, params, zeros, zeros, 0)


@sdpa_kernel(SDPBackend.MATH)  # fused attention has no forward-mode derivative
def loss_of(module: nn.Module, params: Params, ema: Params, batch: Batch, loss: Loss) -> Tensor:
    """The loss at (beta, gamma), a scalar (theory: section 2; anchor and proxy: Algorithm 1).

    Sums squares over coordinates, averages over samples. The proxy is vhat = u_ema(x_t, t, t); the anchor is not
    weighted. `module` lends its structure only: the weights are `params` and `ema`.
    """
    x_t, v_c, r, t, delta, labels = batch
    tangent = target = v_c
    if loss.beta or loss.gamma:
        vhat = functional_call(module, ema, (x_t, t, t, labels)).detach()
        tangent = v_c + loss.beta * (vhat - v_c)
        target = v_c + loss.gamma * (vhat - v_c)

    def network(x: Tensor, time: Tensor) -> Tensor:
        return functional_call(module, params, (x, r, time, labels))

    u, derivative = jvp(network, (x_t, t), (tangent, torch.ones_like(t)))[:2]
    gap = (t - r).reshape(-1, *[1] * (x_t.ndim - 1))
    # e = u + (t-r) sg[du/dx tangent + du/dt] - sg[target]
    square = _square(u + gap * derivative.detach() - target)
    weighting = parse_weighting(loss.weighting)
    if weighting.p:
        square = square * (square.detach() + weighting.eps) ** -weighting.p
    total = square.mean()
    if loss.anchor is not None and delta is not None:
        anchored = functional_call(module, params, (x_t, t - delta, t, labels))
        total = total + loss.anchor.coefficient * _square(anchored - v_c).mean()
    return total


def _square(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1)


def adam(state: State, gradients: Params, learning_rate: float) -> tuple[Params, Params, Params]:
    """Parameters and moments after one step of Adam (arXiv 1412.6980); elementwise, so stacked models work too."""
    (b1, b2), count = _BETAS, state.step + 1
    first = {name: b1 * m + (1 - b1) * gradients[name] for name, m in state.first.items()}
    second = {name: b2 * v + (1 - b2) * gradients[name].square() for name, v in state.second.items()}
    size, root = learning_rate / (1 - b1**count), (1 - b2**count) ** 0.5
    params = {name: p - size * first[name] / (second[name].sqrt() / root + _EPS) for name, p in state.params.items()}
    return params, first, second


def update(module: nn.Module, state: State, batch: Batch, spec: TrainSpec) -> tuple[State, Tensor, Tensor]:
    """The next state, and the loss and the norm of its gradient before the step."""
    gradients, loss = grad_and_value(lambda params: loss_of(module, params, state.ema, batch, spec.loss))(state.params)
    norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
    params, first, second = adam(state, gradients, spec.learning_rate)
    ema = {name: average.lerp(params[name], 1 - spec.ema_decay) for name, average in state.ema.items()}
    return State(params, ema, first, second, state.step + 1), loss, norm
