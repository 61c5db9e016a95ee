"""From a batch of samples to the inputs of the network, and to the fields that estimators are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mfdiag.errors import InputError, first_line
from mfdiag.fields.context import EvaluationContext
from mfdiag.fields.fields import Fields, Velocities, compute_fields
from mfdiag.fields.guided_velocity import GuidedVelocity, condition_for, takes_guidance, with_guidance
from mfdiag.fields.inputs import DerivativesAtPoint, Differentiate, Inputs, VelocityFunction, require_velocity
from mfdiag.fields.probes import FULL_JACOBIAN_DIM, PROBES, random_signs
from mfdiag.flow.conditions import Condition, move_condition, null_of
from mfdiag.flow.draw import Batch, Draws

__all__ = ["FieldBuilder", "FieldNeeds", "Proxy"]

Proxy = Literal["self", "ema", "exact", "teacher"]
"""Where vhat comes from: u(x_t, t, t) of a network, or the exact marginal velocity."""

_FEW_TANGENTS = 6  # up to this many, one backward pass each is cheaper than a separate forward-mode pass


@dataclass(frozen=True)
class FieldNeeds:
    """What a plan needs of the fields in addition to u and its first two derivatives.

    Attributes:
        posterior: Whether to compute the marginal velocity and its relatives, if the posterior is known.
        second_draw: Whether to draw v_c a second time from the posterior.
        jacobian: Whether to measure products with the Jacobian A.
        probes: The number of random probes that replace the full Jacobian in high dimension.
    """

    posterior: bool = True
    second_draw: bool = False
    jacobian: bool = False
    probes: int = PROBES


class FieldBuilder:
    """Makes network inputs and fields from batches, on the device and in the dtype of the run.

    If `draws` are guided, v_g replaces v_c in the fields.

    Args:
        module: The measured network, u(x, r, t, labels). If it has a method `velocity`, this is its velocity head and
            joins `networks` as "head".
        proxy_module: The network whose u(x_t, t, t) is vhat.
        draws: What the samples are drawn from.
        needs: What the plan needs.
        proxy: Where vhat comes from.
        cast: Moves a tensor to the run's device and dtype.
        networks: Other networks by name, "ema" and "teacher".

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
        self.networks: dict[str, VelocityFunction] = dict(networks or {})
        if hasattr(module, "velocity"):
            self.networks["head"] = module.velocity  # type: ignore[assignment]
        self._feature_cache: dict[tuple[int, int], Tensor] = {}
        self.posterior_known = needs.posterior and draws.posterior is not None
        if proxy == "exact" and draws.posterior is None:
            raise InputError(
                f"--proxy exact needs data whose marginal velocity is known, but that of {draws.data.name!r} is not; "
                "choose another proxy."
            )

    def inputs(self, batch: Batch) -> Inputs:
        """x_t, r, t and condition of `batch` as the network takes them."""
        x, r, t = (self._cast(a) for a in (batch.x_t, batch.r, batch.t))
        condition = move_condition(batch.condition, x)
        if condition is not None and batch.scale is not None and takes_guidance(self.module):
            condition = with_guidance(condition, batch.scale, x)
        return x, r, t, condition

    def fields(
        self, batch: Batch, inputs: Inputs, differentiate: Differentiate, shared: DerivativesAtPoint | None = None
    ) -> Fields:
        """Compute the fields of a batch.

        Args:
            batch: Samples of the draws.
            inputs: `self.inputs(batch)`.
            differentiate: Derivatives of the network at any inputs.
            shared: Derivatives at `inputs` from a forward pass that the engine keeps anyway; used for few tangents.

        Returns:
            The fields, with their context and weight.

        Raises:
            InputError: The proxy's network cannot be evaluated or does not return a velocity, or u does not have the
                shape of x.
        """
        x, _, t, condition = inputs
        posterior = None
        if self.posterior_known or self.proxy == "exact":
            posterior = self.draws.velocity_posterior(batch)
        guided = self._guidance(batch, x)
        affine = None if guided is None else guided.affine_at(x, t)
        factor, shift = affine or (1.0, 0.0)

        def guide(values: Tensor) -> Tensor:
            """v_g is affine in v_c, and so are its mean and its draws."""
            return factor * self._cast(values) + shift

        if self.proxy == "exact" and posterior is not None:
            vhat = guide(posterior.mean)
        else:
            vhat = self._proxy_velocity(x, t, condition)
        of_fields = posterior if self.posterior_known else None  # else it serves the exact proxy alone
        velocities = Velocities(
            guide(batch.velocity),
            vhat,
            marginal=None if of_fields is None else guide(of_fields.mean),
            variance=None if of_fields is None else factor**2 * self._cast(of_fields.variance),
            second_draw=guide(of_fields.draw) if of_fields is not None and self.needs.second_draw else None,
        )

        def derivatives_at_point(dx: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
            if shared is not None and len(dx) <= _FEW_TANGENTS:
                return shared(dx, dt)
            return differentiate(*inputs, dx, dt)

        use_probes = self.needs.jacobian and x[0].numel() > FULL_JACOBIAN_DIM
        signs = random_signs(self.draws, "probes", batch.index, x, self.needs.probes) if use_probes else None
        fields = compute_fields(inputs, velocities, derivatives_at_point, jacobian=self.needs.jacobian, probes=signs)
        context = self._context(inputs, differentiate, shared, batch.index)
        weight = None if batch.weight is None else self._cast(batch.weight)
        return replace(fields, context=replace(context, guided=guided, guidance_affine=affine), weight=weight)

    def require_null_label(self, inputs: Inputs) -> None:
        """Check that the network accepts the null condition, by one evaluation at conditioned `inputs`.

        Raises:
            InputError: It does not.
        """
        x, r, t, condition = inputs
        try:
            with torch.no_grad():
                self.module(x, r, t, null_of(condition, self.draws.null_label))
        except (RuntimeError, IndexError) as error:
            raise InputError(
                f"--guidance passes the null label {self.draws.null_label}, one above the classes, but the network "
                f"does not accept it ({first_line(error)}). Give its label embedding one more row, or "
                "translate the label in a wrapper or card."
            ) from error

    def _context(
        self, inputs: Inputs, differentiate: Differentiate, shared: DerivativesAtPoint | None, index: np.ndarray
    ) -> EvaluationContext:
        def jvp_x(dx: Tensor) -> Tensor:
            dt = inputs[0].new_zeros(dx.shape[:2])
            return (shared(dx, dt) if shared is not None else differentiate(*inputs, dx, dt))[1]

        return EvaluationContext(
            *inputs,
            self.module,
            self.networks,
            self.proxy,
            jvp_x,
            differentiate,
            self.draws,
            index,
            feature_cache=self._feature_cache,
        )

    def _guidance(self, batch: Batch, x: Tensor) -> GuidedVelocity | None:
        """The guidance of the batch; None without guidance."""
        guidance = self.draws.guidance
        if guidance is None or batch.dropped is None:
            return None
        network = self.module if guidance.network == "self" else self.networks[guidance.network]

        def velocity(x: Tensor, r: Tensor, t: Tensor, condition: Condition) -> Tensor:
            if guidance.network == "head":
                return network(x, r, t, condition)
            return network(x, 0 * t if guidance.from_zero else t, t, condition_for(network, condition))

        takes = takes_guidance(network if guidance.network == "teacher" else self.module)
        return GuidedVelocity.of_batch(batch, guidance, velocity, takes, self.draws.null_label, x)

    def _proxy_velocity(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """vhat = u(x_t, t, t) of the proxy's network."""
        network = self.proxy_module
        try:
            with torch.no_grad():
                vhat = network(x, t, t, condition_for(network, condition))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            reason = first_line(error)
            raise InputError(
                f"The proxy's network cannot be evaluated on samples of shape {tuple(x.shape[1:])}: {reason}. "
                "Check --proxy."
            ) from error
        return require_velocity("The proxy's network", vhat, x).detach()  # some networks turn gradients on inside
