"""Modular MeanFlow: part of the gradient goes through the derivative."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mfdiag.estimators._arguments import require, with_arguments
from mfdiag.estimators._base import Estimator, Needs, squared_norm

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import DifferentiableNetwork, Fields

__all__ = ["ESTIMATOR"]


def loss(fields: Fields, network: DifferentiableNetwork, modulation: float) -> Tensor:
    # arXiv 2508.17426: |u + (t-r) SG[du/dx v_c + du/dt] - v_c|^2 with SG[z] = lambda z + (1-lambda) sg[z]. The paper
    # raises lambda during training from 0 (MeanFlow) to 1 (no stop-gradient); here it is fixed.
    u, derivative = network.jvp(fields.x, fields.r, fields.t, dx=fields.v_c, dt=1.0)
    modulated = modulation * derivative + (1 - modulation) * derivative.detach()
    return squared_norm(u + fields.gap * modulated - fields.v_c)


def build(name: str, modulation: float) -> Estimator:
    require(0 <= modulation <= 1, name, "modulation must be between 0 and 1")
    return Estimator(
        name,
        "Modular MeanFlow: the derivative partly outside the stop-gradient: modular_meanflow:[modulation=0.5]",
        "arXiv 2508.17426",
        "|u + (t-r) SG[du/dx v_c + du/dt] - v_c|^2, SG[z] = lambda z + (1-lambda) sg[z]",
        needs=Needs(trained_jvps=1),
        loss=partial(loss, modulation=modulation),
    )


ESTIMATOR = with_arguments("modular_meanflow", {"modulation": 0.5}, build)
