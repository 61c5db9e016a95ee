"""The loss of one model as a function of a dict of parameters; `torch.func.vmap` turns it into the losses of many."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from mfdiag.flow.weighting import Weighting

__all__ = ["LossCoefficients", "Params", "TrainBatch", "training_loss"]

Params = dict[str, Tensor]
"""Parameter name -> tensor."""


class TrainBatch(NamedTuple):
    """n samples of a training step.

    Attributes:
        x_t: Points [n, *shape].
        v_c: Conditional velocities [n, *shape].
        r: Start times [n].
        t: End times [n].
        delta: The anchor's time steps [n]; None without anchor.
        labels: Class labels [n], or None.
        weight: Weight of each sample in the loss [n]; None if all are 1.
        uniform: A uniform number for each sample [n], for methods that draw one; else None.
        vhat: Velocity of a proxy that is no network of the run [n, *shape]; else None.
    """

    x_t: Tensor
    v_c: Tensor
    r: Tensor
    t: Tensor
    delta: Tensor | None = None
    labels: Tensor | None = None
    weight: Tensor | None = None
    uniform: Tensor | None = None
    vhat: Tensor | None = None


class LossCoefficients(NamedTuple):
    """Coefficients of a loss, each a number, a 0-d tensor or None: beta, gamma, and lambda of the anchor.

    Beta may also be a tensor [n], a coefficient for each sample. None gives the same loss as 0 but costs less: any
    other beta or gamma needs a forward pass of the proxy.
    """

    beta: Tensor | float | None = None
    gamma: Tensor | float | None = None
    anchor: Tensor | float | None = None


def training_loss(
    module: nn.Module,
    params: Params,
    proxy: Params,
    batch: TrainBatch,
    coefficients: LossCoefficients,
    weighting: Weighting,
) -> Tensor:
    """The loss at a point of the plane (docs/theory.md#plane), with the anchor of arXiv 2605.09235, Algorithm 1.

    Squares are summed over coordinates and averaged over samples. The proxy is the batch's `vhat`, or else
    u(x_t, t, t) with the proxy's weights. Fused attention has no forward-mode derivative, so call this inside
    `twice_differentiable`.

    Args:
        module: The network, used for its structure only.
        params: Its weights.
        proxy: Weights of the proxy, under stop-gradient: the averaged ones, or `params` again.
        batch: Samples; their `weight` multiplies the whole loss.
        coefficients: The point (beta, gamma), and lambda of the anchor.
        weighting: Adaptive weight of the plane's part of the loss; the anchor has none.

    Returns:
        The loss, a scalar.
    """
    x_t, v_c, r, t, delta, labels, weight = batch[:7]
    tangent = target = v_c
    if coefficients.beta is not None or coefficients.gamma is not None:
        vhat = batch.vhat if batch.vhat is not None else functional_call(module, proxy, (x_t, t, t, labels)).detach()
        if coefficients.beta is not None:
            tangent = v_c + _per_sample(coefficients.beta, x_t) * (vhat - v_c)
        if coefficients.gamma is not None:
            target = v_c + coefficients.gamma * (vhat - v_c)

    def network(x: Tensor, end: Tensor) -> Tensor:
        return functional_call(module, params, (x, r, end, labels))

    u, derivative = jvp(network, (x_t, t), (tangent, torch.ones_like(t)))[:2]
    gap = (t - r).reshape(-1, *[1] * (x_t.ndim - 1))
    # e = u + (t-r) sg[du/dx tangent + du/dt] - sg[target]
    losses = _squared_norm(u + gap * derivative.detach() - target)
    if weighting.p:
        losses = weighting.loss(losses, x_t[0].numel())
    if coefficients.anchor is not None and delta is not None:
        anchored = functional_call(module, params, (x_t, t - delta, t, labels))
        losses = losses + coefficients.anchor * _squared_norm(anchored - v_c)
    return (losses if weight is None else weight * losses).mean()


def _per_sample(values: Tensor | float, x: Tensor) -> Tensor | float:
    """Numbers [n] as they multiply samples `x` [n, *shape]; a single number as it is."""
    if not isinstance(values, Tensor) or values.ndim == 0:
        return values
    return values.reshape(-1, *[1] * (x.ndim - 1))


def _squared_norm(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1)
