"""Sample numbers -> what the model takes and what the estimators are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.estimators._around import Around, Velocity
from mfdiag.estimators._fields import FULL_JACOBIAN_DIM, Fields, evaluate, random_signs
from mfdiag.estimators._guided import Guided, labels_for, told_labels
from mfdiag.flow.draw import Batch, Draws
from mfdiag.gradients.calling import require_velocity
from mfdiag.gradients.derivative import Derivative, forward_mode
from mfdiag.gradients.engine import Engine
from mfdiag.gradients.opened import Opened
from mfdiag.gradients.reference import Inputs

__all__ = ["FieldMaker", "Needs", "Proxy"]

Proxy = Literal["self", "ema", "exact", "teacher"]


@dataclass(frozen=True)
class Needs:
    """What a plan asks of the fields besides u and its two derivatives."""

    posterior: bool = True  # the marginal velocity, where it is known
    second_draw: bool = False
    jacobian: bool = False


class FieldMaker:
    """Sample numbers -> (model inputs, fields) on the run's device and in its dtype.

    `derivative` differentiates the network, by forward mode unless told otherwise. Where `draws` are guided, v_g takes
    the place of v_c in the fields.
    """

    def __init__(
        self,
        module: nn.Module,
        guide: nn.Module,
        draws: Draws,
        needs: Needs,
        proxy: Proxy,
        to: Callable[[Tensor], Tensor],
        networks: Mapping[str, nn.Module] | None = None,
        derivative: Derivative | None = None,
    ) -> None:
        self.module, self.guide, self.draws, self.needs, self.proxy = module, guide, draws, needs, proxy
        self._cast = to  # the run's device and dtype
        self.networks: dict[str, Velocity] = dict(networks or {})
        self.derivative = derivative or forward_mode(module)
        if hasattr(module, "velocity"):
            self.networks["head"] = module.velocity  # type: ignore[assignment]
        self.known = needs.posterior and draws.posterior is not None
        if proxy == "exact" and draws.posterior is None:
            raise InputError(f"--proxy exact needs data whose marginal velocity is known; {draws.data.name!r} is not.")

    def inputs(self, batch: Batch) -> Inputs:
        """x_t, r, t and labels as the model takes them."""
        x, r, t = (self._cast(a) for a in (batch.x_t, batch.r, batch.t))
        labels = None if batch.labels is None else batch.labels.to(x.device)
        if labels is not None and batch.scale is not None and getattr(self.module, "told_guidance", False):
            labels = told_labels(labels, batch.scale, x)
        return x, r, t, labels

    def __call__(self, index: np.ndarray, engine: Engine) -> tuple[Inputs, Fields, Opened | None]:
        batch = self.draws.batch(index)
        posterior = None
        if self.known or self.proxy == "exact":
            posterior = self.draws.velocity_posterior(batch)
        inputs = self.inputs(batch)
        x, _, t, labels = inputs
        guided = self._guidance(batch, x)
        placed = None if guided is None else guided.at(x, t)
        factor, shift = placed or (1.0, 0.0)

        def velocity(values: Tensor) -> Tensor:
            return factor * self._cast(values) + shift  # v_g is affine in v_c, and so are its conditional laws

        if self.proxy == "exact" and posterior is not None:
            vhat = velocity(posterior.mean)
        else:
            vhat = self._proxy(x, t, labels)
        known = posterior if self.known else None
        probed = self.needs.jacobian and x[0].numel() > FULL_JACOBIAN_DIM
        opened = engine.open(inputs)
        shared = opened if opened is not None and opened.x.requires_grad and self.derivative.along is None else None
        fields = evaluate(
            self.module,
            *inputs,
            velocity(batch.velocity),
            vhat,
            marginal=None if known is None else velocity(known.mean),
            variance=None if known is None else factor**2 * self._cast(known.variance),
            other=velocity(known.draw) if known is not None and self.needs.second_draw else None,
            jacobian=self.needs.jacobian,
            signs=random_signs(self.draws, "probes", index, x) if probed else None,
            along=None if shared is None else shared.derivatives,
            differentiate=self.derivative.differentiate,
        )
        around = replace(self._around(inputs, shared, index), guided=guided, placed=placed)
        weight = None if batch.weight is None else self._cast(batch.weight)
        return inputs, replace(fields, around=around, weight=weight), opened

    def _around(self, inputs: Inputs, shared: Opened | None, index: np.ndarray) -> Around:
        def derive(dx: Tensor) -> Tensor:
            dt = inputs[0].new_zeros(dx.shape[:2])
            if shared is not None:
                return shared.derivatives(dx, dt)[1]
            return self.derivative.differentiate(*inputs, dx, dt)[1]

        return Around(
            *inputs,
            self.module,
            self.networks,
            self.proxy,
            derive,
            self.derivative.differentiate,
            self.draws,
            index,
        )

    def require_null_label(self, inputs: Inputs) -> None:
        """InputError where the network does not take the null label that guidance or label drop hands over."""
        x, r, t, labels = inputs
        assert labels is not None
        null = labels.clone()
        (null if null.ndim == 1 else null[:, 0]).fill_(self.draws.null)
        try:
            with torch.no_grad():
                self.module(x, r, t, null)
        except (RuntimeError, IndexError) as error:
            raise InputError(
                f"--guidance hands over label {self.draws.null}, one above the classes, as null label, which the "
                f"network does not take ({str(error).splitlines()[0]}): give its embedding one more row, or translate "
                "in a wrapper or card."
            ) from error

    def _guidance(self, batch: Batch, x: Tensor) -> Guided | None:
        """What guidance makes of the batch's conditional velocities; None without."""
        law = self.draws.guidance
        if law is None or batch.dropped is None:
            return None
        name = law.network
        network = self.module if name == "self" else self.networks[name]

        def velocity(x: Tensor, r: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            return network(x, r if name == "head" else t, t, labels)

        told = getattr(network if name == "teacher" else self.module, "told_guidance", False)
        return Guided.of(batch, law, velocity, told, self.draws.null, x)

    def _proxy(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """vhat = u(x_t, t, t) of the proxy's network."""
        try:
            with torch.no_grad():
                vhat = self.guide(x, t, t, labels_for(self.guide, labels)).detach()  # some turn gradients on within
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"The proxy's network cannot be evaluated on samples of shape {tuple(x.shape[1:])}: {reason}; "
                "check --proxy."
            ) from error
        return require_velocity("The proxy's network", vhat, x)
