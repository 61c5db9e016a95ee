"""The loss of one model, as a function of a dict of parameters; torch.func.vmap makes it the losses of many."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from mfdiag.flow.weighting import Weighting

__all__ = ["Params", "Point", "TrainBatch", "loss_of"]

Params = dict[str, Tensor]


class TrainBatch(NamedTuple):
    """n samples: x_t and conditional velocity v_c [n, *shape]; r, t, the anchor's delta, labels, loss weights [n]."""

    x_t: Tensor
    v_c: Tensor
    r: Tensor
    t: Tensor
    delta: Tensor | None = None
    labels: Tensor | None = None
    weight: Tensor | None = None


class Point(NamedTuple):
    """Coefficients of a loss, each a number or a 0-d tensor: beta, gamma, and the anchor's lambda; None leaves it out.

    None differs from 0 in cost alone: a beta or gamma that is there needs a forward pass of the proxy.
    """

    beta: Tensor | float | None = None
    gamma: Tensor | float | None = None
    anchor: Tensor | float | None = None


def loss_of(
    module: nn.Module, params: Params, ema: Params, batch: TrainBatch, point: Point, weighting: Weighting
) -> Tensor:
    """The loss at (beta, gamma), a scalar (theory: section 2; anchor and proxy: Algorithm 1).

    Sums squares over coordinates, averages over samples. The proxy is vhat = u_ema(x_t, t, t); `weighting` leaves the
    anchor alone, the batch's own weights do not. `module` lends its structure only: the weights are `params` and
    `ema`. Fused attention has no forward-mode derivative: call within `twice_differentiable`.
    """
    x_t, v_c, r, t, delta, labels, weight = batch
    tangent = target = v_c
    if point.beta is not None or point.gamma is not None:
        vhat = functional_call(module, ema, (x_t, t, t, labels)).detach()
        if point.beta is not None:
            tangent = v_c + point.beta * (vhat - v_c)
        if point.gamma is not None:
            target = v_c + point.gamma * (vhat - v_c)

    def network(x: Tensor, time: Tensor) -> Tensor:
        return functional_call(module, params, (x, r, time, labels))

    u, derivative = jvp(network, (x_t, t), (tangent, torch.ones_like(t)))[:2]
    gap = (t - r).reshape(-1, *[1] * (x_t.ndim - 1))
    # e = u + (t-r) sg[du/dx tangent + du/dt] - sg[target]
    losses = _square(u + gap * derivative.detach() - target)
    if weighting.p:
        losses = weighting.loss(losses, x_t[0].numel())
    if point.anchor is not None and delta is not None:
        anchored = functional_call(module, params, (x_t, t - delta, t, labels))
        losses = losses + point.anchor * _square(anchored - v_c)
    return (losses if weight is None else weight * losses).mean()


def _square(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1)
