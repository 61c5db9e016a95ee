"""From sample numbers to what the network is called with, and to the fields that estimators are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.fields.context import EvaluationContext
from mfdiag.fields.fields import Fields, Velocities, compute_fields
from mfdiag.fields.guided_velocity import GuidedVelocity, labels_for, labels_with_guidance, takes_guidance
from mfdiag.fields.inputs import DerivativesAtPoint, Differentiate, Inputs, Velocity, require_velocity
from mfdiag.fields.probes import FULL_JACOBIAN_DIM, random_signs
from mfdiag.flow.draw import Batch, Draws

__all__ = ["FieldBuilder", "FieldNeeds", "Proxy"]

Proxy = Literal["self", "ema", "exact", "teacher"]

_FEW_TANGENTS = 6  # up to this many, one backward pass each is cheaper than a forward-mode pass of its own


@dataclass(frozen=True)
class FieldNeeds:
    """What a plan asks of the fields besides u and its two derivatives."""

    posterior: bool = True  # the marginal velocity, where it is known
    second_draw: bool = False
    jacobian: bool = False


class FieldBuilder:
    """Sample numbers -> network inputs -> fields, on the run's device and in its dtype.

    Where `draws` are guided, v_g takes the place of v_c in the fields.

    Args:
        module: The measured network, u(x, r, t, labels).
        proxy_module: The network whose u(x_t, t, t) is vhat.
        draws: The law of the samples.
        needs: What the plan asks for.
        proxy: Where vhat comes from.
        cast: Moves a tensor to the run's device and dtype.
        networks: Further networks by name, "ema" and "teacher"; a method `velocity` of `module` is added as "head".

    Raises:
        InputError: `proxy` is "exact" and the marginal velocity is not known.
    """

    def __init__(
        self,
        module: nn.Module,
        proxy_module: nn.Module,
        draws: Draws,
        needs: FieldNeeds,
        proxy: Proxy,
        cast: Callable[[Tensor], Tensor],
        networks: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.module, self.proxy_module, self.draws, self.needs, self.proxy = module, proxy_module, draws, needs, proxy
        self._cast = cast
        self.networks: dict[str, Velocity] = dict(networks or {})
        if hasattr(module, "velocity"):
            self.networks["head"] = module.velocity  # type: ignore[assignment]
        self.posterior_known = needs.posterior and draws.posterior is not None
        if proxy == "exact" and draws.posterior is None:
            raise InputError(f"--proxy exact needs data whose marginal velocity is known; {draws.data.name!r} is not.")

    def inputs(self, batch: Batch) -> Inputs:
        """x_t, r, t and labels of `batch` as the network takes them."""
        x, r, t = (self._cast(a) for a in (batch.x_t, batch.r, batch.t))
        labels = None if batch.labels is None else batch.labels.to(x.device)
        if labels is not None and batch.scale is not None and takes_guidance(self.module):
            labels = labels_with_guidance(labels, batch.scale, x)
        return x, r, t, labels

    def fields(
        self, batch: Batch, inputs: Inputs, differentiate: Differentiate, shared: DerivativesAtPoint | None = None
    ) -> Fields:
        """The fields of a batch.

        Args:
            batch: Samples of the draws.
            inputs: `self.inputs(batch)`.
            differentiate: Derivatives of the network anywhere.
            shared: Derivatives at `inputs` from a forward pass that is kept anyway; cheaper for a few tangents.

        Returns:
            The fields, with their context and weight.

        Raises:
            InputError: The proxy's network cannot be evaluated, or returns something else than a velocity.
        """
        x, _, t, labels = inputs
        posterior = None
        if self.posterior_known or self.proxy == "exact":
            posterior = self.draws.velocity_posterior(batch)
        guided = self._guidance(batch, x)
        affine = None if guided is None else guided.at(x, t)
        factor, shift = affine or (1.0, 0.0)

        def velocity(values: Tensor) -> Tensor:
            return factor * self._cast(values) + shift  # v_g is affine in v_c, and so are its conditional laws

        if self.proxy == "exact" and posterior is not None:
            vhat = velocity(posterior.mean)
        else:
            vhat = self._proxy_velocity(x, t, labels)
        known = posterior if self.posterior_known else None
        velocities = Velocities(
            velocity(batch.velocity),
            vhat,
            marginal=None if known is None else velocity(known.mean),
            variance=None if known is None else factor**2 * self._cast(known.variance),
            second_draw=velocity(known.draw) if known is not None and self.needs.second_draw else None,
        )

        def at_point(dx: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
            if shared is not None and len(dx) <= _FEW_TANGENTS:
                return shared(dx, dt)
            return differentiate(*inputs, dx, dt)

        probed = self.needs.jacobian and x[0].numel() > FULL_JACOBIAN_DIM
        signs = random_signs(self.draws, "probes", batch.index, x) if probed else None
        fields = compute_fields(inputs, velocities, at_point, jacobian=self.needs.jacobian, probes=signs)
        context = replace(
            self._context(inputs, differentiate, shared, batch.index), guided=guided, guidance_affine=affine
        )
        weight = None if batch.weight is None else self._cast(batch.weight)
        return replace(fields, context=context, weight=weight)

    def require_null_label(self, inputs: Inputs) -> None:
        """InputError where the network does not accept the null label that guidance or label drop passes."""
        x, r, t, labels = inputs
        assert labels is not None
        null = labels.clone()
        (null if null.ndim == 1 else null[:, 0]).fill_(self.draws.null_label)
        try:
            with torch.no_grad():
                self.module(x, r, t, null)
        except (RuntimeError, IndexError) as error:
            raise InputError(
                f"--guidance hands over label {self.draws.null_label}, one above the classes, as null label, which the "
                f"network does not take ({str(error).splitlines()[0]}): give its embedding one more row, or translate "
                "in a wrapper or card."
            ) from error

    def _context(
        self, inputs: Inputs, differentiate: Differentiate, shared: DerivativesAtPoint | None, index: np.ndarray
    ) -> EvaluationContext:
        def derive(dx: Tensor) -> Tensor:
            dt = inputs[0].new_zeros(dx.shape[:2])
            return (shared(dx, dt) if shared is not None else differentiate(*inputs, dx, dt))[1]

        return EvaluationContext(
            *inputs, self.module, self.networks, self.proxy, derive, differentiate, self.draws, index
        )

    def _guidance(self, batch: Batch, x: Tensor) -> GuidedVelocity | None:
        """What guidance makes of the batch's conditional velocities; None without guidance."""
        law = self.draws.guidance
        if law is None or batch.dropped is None:
            return None
        name = law.network
        network = self.module if name == "self" else self.networks[name]

        def velocity(x: Tensor, r: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            return network(x, r if name == "head" else t, t, labels)

        with_guidance = takes_guidance(network if name == "teacher" else self.module)
        return GuidedVelocity.of(batch, law, velocity, with_guidance, self.draws.null_label, x)

    def _proxy_velocity(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """vhat = u(x_t, t, t) of the proxy's network."""
        network = self.proxy_module
        try:
            with torch.no_grad():
                vhat = network(x, t, t, labels_for(network, labels)).detach()  # some turn gradients on within
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"The proxy's network cannot be evaluated on samples of shape {tuple(x.shape[1:])}: {reason}; "
                "check --proxy."
            ) from error
        return require_velocity("The proxy's network", vhat, x)
