"""Modular MeanFlow: part of the gradient goes through the derivative: modular_meanflow:modulation."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mfdiag.estimators._arguments import require, with_arguments
from mfdiag.estimators._base import Estimator, Needs, squared

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields.differentiable_network import DifferentiableNetwork
    from mfdiag.fields.fields import Fields

__all__ = ["ESTIMATOR"]


def loss(fields: Fields, network: DifferentiableNetwork, modulation: float) -> Tensor:
    # arXiv 2508.17426: |u + (t-r) SG[du/dx v_c + du/dt] - v_c|^2 with SG[z] = lambda z + (1-lambda) sg[z];
    # lambda rises from 0 (MeanFlow) to 1 (no stop-gradient) during training
    u, along = network.along(fields.x, fields.r, fields.t, dx=fields.v_c, dt=1.0)
    modulated = modulation * along + (1 - modulation) * along.detach()
    return squared(u + fields.gap * modulated - fields.v_c)


def make(name: str, modulation: float) -> Estimator:
    require(0 <= modulation <= 1, name, "modulation must be between 0 and 1")
    return Estimator(
        name,
        "Modular MeanFlow: the derivative partly outside the stop-gradient: modular_meanflow:[modulation=0.5]",
        "arXiv 2508.17426",
        "|u + (t-r) SG[du/dx v_c + du/dt] - v_c|^2, SG[z] = lambda z + (1-lambda) sg[z]",
        needs=Needs(trained_jvps=1),
        loss=partial(loss, modulation=modulation),
    )


ESTIMATOR = with_arguments("modular_meanflow", {"modulation": 0.5}, make)
