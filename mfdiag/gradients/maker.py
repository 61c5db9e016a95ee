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
from mfdiag.estimators._fields import FULL_JACOBIAN_DIM, PROBES, Fields, derivatives, evaluate
from mfdiag.flow.draw import Batch, Draws
from mfdiag.flow.seeds import uniforms
from mfdiag.gradients.calling import require_velocity
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
    """Sample numbers -> (model inputs, fields) on the run's device and in its dtype."""

    def __init__(
        self,
        module: nn.Module,
        guide: nn.Module,
        draws: Draws,
        needs: Needs,
        proxy: Proxy,
        to: Callable[[Tensor], Tensor],
        networks: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.module, self.guide, self.draws, self.needs, self.proxy = module, guide, draws, needs, proxy
        self._cast = to  # the run's device and dtype
        self.networks: dict[str, Velocity] = dict(networks or {})
        if hasattr(module, "velocity"):
            self.networks["head"] = module.velocity  # type: ignore[assignment]
        self.known = needs.posterior and draws.posterior is not None
        if proxy == "exact" and draws.posterior is None:
            raise InputError(f"--proxy exact needs data whose marginal velocity is known; {draws.data.name!r} is not.")

    def inputs(self, batch: Batch) -> Inputs:
        """x_t, r, t and labels as the model takes them."""
        x, r, t = (self._cast(a) for a in (batch.x_t, batch.r, batch.t))
        return x, r, t, None if batch.labels is None else batch.labels.to(x.device)

    def __call__(self, index: np.ndarray, engine: Engine) -> tuple[Inputs, Fields, Opened | None]:
        batch = self.draws.batch(index)
        posterior = None
        if self.known or self.proxy == "exact":
            posterior = self.draws.velocity_posterior(batch)
        x, r, t, labels = self.inputs(batch)
        if self.proxy == "exact" and posterior is not None:
            vhat = self._cast(posterior.mean)
        else:
            vhat = self._guided(x, t, labels)
        known = posterior if self.known else None
        opened = engine.open((x, r, t, labels))
        fields = evaluate(
            self.module,
            x,
            r,
            t,
            labels,
            self._cast(batch.velocity),
            vhat,
            marginal=None if known is None else self._cast(known.mean),
            variance=None if known is None else self._cast(known.variance),
            other=self._cast(known.draw) if known is not None and self.needs.second_draw else None,
            jacobian=self.needs.jacobian,
            signs=self._signs(index, x) if self.needs.jacobian else None,
            along=opened.derivatives if opened is not None and opened.x.requires_grad else None,
        )
        around = self._around(x, r, t, labels, opened, index)
        weight = None if batch.weight is None else self._cast(batch.weight)
        return (x, r, t, labels), replace(fields, around=around, weight=weight), opened

    def _around(
        self, x: Tensor, r: Tensor, t: Tensor, labels: Tensor | None, opened: Opened | None, index: np.ndarray
    ) -> Around:
        def derive(dx: Tensor) -> Tensor:
            dt = x.new_zeros(len(dx), len(x))
            if opened is not None and opened.x.requires_grad:
                return opened.derivatives(dx, dt)[1]
            return derivatives(self.module, x, r, t, labels, dx, dt)[1]

        return Around(x, r, t, labels, self.module, self.networks, self.proxy, derive, self.draws, index)

    def _guided(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """vhat = u(x_t, t, t) of the proxy's network."""
        try:
            with torch.no_grad():
                vhat = self.guide(x, t, t, labels)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"The proxy's network cannot be evaluated on samples of shape {tuple(x.shape[1:])}: {reason}; "
                "check --proxy."
            ) from error
        return require_velocity("The proxy's network", vhat, x)

    def _signs(self, index: np.ndarray, x: Tensor) -> Tensor | None:
        d = x[0].numel()
        if d <= FULL_JACOBIAN_DIM:
            return None
        u = uniforms(self.draws.seed, "probes", index, PROBES * d)
        signs = torch.as_tensor(np.where(u < 0.5, -1.0, 1.0)).view(len(index), PROBES, *x.shape[1:])
        return self._cast(signs.transpose(0, 1).contiguous())
