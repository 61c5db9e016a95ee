"""The loss of any method of the family as training differentiates it: on a batch, for a dict of parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from mfdiag.estimators import Estimator
from mfdiag.fields import DifferentiableNetwork, EvaluationContext, Fields
from mfdiag.flow.paths import Path
from mfdiag.flow.weighting import Weighting
from mfdiag.training.loss import Params, TrainBatch

__all__ = ["estimator_losses"]


def estimator_losses(
    module: nn.Module,
    params: Params,
    ema: Params,
    batch: TrainBatch,
    estimator: Estimator,
    weighting: Weighting,
    path: Path,
) -> Tensor:
    """The loss of each sample, without the weights of the batch.

    Args:
        module: The network, used for its structure only.
        params: Its weights.
        ema: Its averaged weights, under stop-gradient.
        batch: Samples of the path.
        estimator: A `trainable_estimator`.
        weighting: Adaptive weight of each sample.
        path: The path from data to noise.

    Returns:
        Losses [n], with a gradient to `params` where the method has one.
    """
    x, r, t, labels = batch.x_t, batch.r, batch.t, batch.labels

    def evaluate(*inputs: Tensor | None) -> Tensor:
        return functional_call(module, params, inputs)

    fields = _TrainingFields.of(module, params, ema, batch, path)
    if estimator.loss is not None:
        losses = estimator.loss(fields, DifferentiableNetwork(module, evaluate, labels, jvp))
    else:
        assert estimator.residual is not None
        u = evaluate(x, r, t, labels)
        fields.__dict__["u"] = u.detach()
        # the gradient of u regressed on a target under stop-gradient
        losses = (u - u.detach() + estimator.residual(fields).detach()).flatten(1).square().sum(1)
    return weighting.loss(losses, x[0].numel()) if weighting.p else losses


class _TrainingFields(Fields):
    """Fields of a training batch; what needs an evaluation of a network is computed when it is asked for."""

    @classmethod
    def of(cls, module: nn.Module, params: Params, ema: Params, batch: TrainBatch, path: Path) -> _TrainingFields:
        stopped = {name: p.detach() for name, p in params.items()}

        def model(*inputs: Tensor | None) -> Tensor:
            return functional_call(module, stopped, inputs)  # detach() would cut forward mode too

        def average(*inputs: Tensor | None) -> Tensor:
            return functional_call(module, ema, inputs)

        def differentiate(
            x: Tensor, r: Tensor, t: Tensor, condition: Any, dx: Tensor, dt: Tensor
        ) -> tuple[Tensor, Tensor]:
            def at(a: Tensor, b: Tensor) -> Tensor:
                return model(a, r, b, condition)

            pairs = [jvp(at, (x, t), tangents)[:2] for tangents in zip(dx, dt, strict=True)]
            return pairs[0][0], torch.stack([derivative.detach() for _, derivative in pairs])

        def jvp_x(dx: Tensor) -> Tensor:
            return differentiate(x, r, t, labels, dx, x.new_zeros(dx.shape[:2]))[1]

        x, r, t, labels = batch.x_t, batch.r, batch.t, batch.labels
        draws: Any = _Draws(path, batch.uniform)
        context = EvaluationContext(
            x, r, t, labels, model, {"ema": average}, "ema", jvp_x, differentiate, draws, np.zeros(0, np.int64)
        )
        fields = object.__new__(cls)
        gap = (t - r).reshape(-1, *[1] * (x.ndim - 1))
        fields.__dict__.update(v_c=batch.v_c, gap=gap, context=context)
        return fields

    def __getattr__(self, name: str) -> Tensor:
        compute = {"u": self._u, "vhat": self._vhat, "jvp_v_c": self._jvp_v_c, "jvp_shift": self._jvp_shift}.get(name)
        if compute is None:
            raise AttributeError(name)
        self.__dict__[name] = value = compute()
        return value

    def _u(self) -> Tensor:
        return self.average_velocity(self.x, self.r, self.t)

    def _vhat(self) -> Tensor:
        return self.instantaneous_velocity("ema", self.x, self.t)

    def _jvp_v_c(self) -> Tensor:
        return self.derivative_at(self.r, self.v_c)

    def _jvp_shift(self) -> Tensor:
        return self.derivative_at(self.r, self.vhat - self.v_c, dt=0.0)


@dataclass(frozen=True)
class _Draws:
    """What methods ask of the draws in training: the path, and one uniform number for each sample."""

    path: Path
    numbers: Tensor | None

    def uniforms(self, purpose: str, index: np.ndarray, width: int) -> Tensor:
        """The numbers [n, 1] of the batch."""
        assert self.numbers is not None and width == 1, f"{purpose}: a method that draws numbers says so in its needs"
        return self.numbers[:, None]
