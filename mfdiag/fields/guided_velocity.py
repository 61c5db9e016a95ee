"""The guided velocity v_g, which replaces v_c under classifier-free guidance (docs/theory.md#guidance)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mfdiag.fields.inputs import VelocityFunction
from mfdiag.flow.conditions import Condition, labels_of, move_condition, null_of, with_labels
from mfdiag.flow.draw import Batch
from mfdiag.flow.guidance import Guidance, GuidanceScale
from mfdiag.models.wrapper import conditions_taken

__all__ = ["GuidedVelocity", "condition_for", "takes_guidance", "with_guidance"]


def with_guidance(condition: Condition, scale: GuidanceScale, like: Tensor) -> Condition:
    """The condition of a network that takes its guidance as an input.

    Args:
        condition: Class labels [n], alone or with arrays by name.
        scale: Strength omega and interval [low, high] of each sample.
        like: A tensor of the dtype and device of the result.

    Returns:
        The condition with labels [n, 4], with columns label (0 without labels), omega, low and high.
    """
    labels = labels_of(condition)
    first = torch.zeros_like(scale.omega) if labels is None else labels
    columns = torch.stack([part.to(like) for part in (first, *scale)], dim=1)
    return with_labels(condition, columns)


def takes_guidance(network: object) -> bool:
    """Whether the network takes its guidance as an input: labels [n, 4] instead of [n]."""
    return bool(getattr(network, "takes_guidance", getattr(network, "told_guidance", False)))  # the latter until 0.1


def condition_for(network: VelocityFunction, condition: Condition) -> Condition:
    """Convert a condition to the form that a network takes.

    Args:
        network: A network, which takes labels [n, 4] if it has `takes_guidance`, else [n]; and arrays by name or none.
        condition: A condition with labels [n], [n, 4] or none.

    Returns:
        The condition with labels [n, 4] if both it and the network have guidance, else with labels [n] or none.
    """
    labels = labels_of(condition)
    if not conditions_taken(network):
        condition = labels
    if labels is None or labels.ndim == 1 or takes_guidance(network):
        return condition
    return with_labels(condition, labels[:, 0].long())


@dataclass(frozen=True)
class GuidedVelocity:
    """v_g = factor v_c + shift, where factor and shift depend on the point, the time and the label alone.

    Given these, only v_c is random. So v_g has the mean factor v + shift and the covariance factor^2 Sigma, and the
    same map turns every conditional distribution of v_c into that of v_g (docs/theory.md#guidance).

    Attributes:
        guidance: The formula.
        velocity: (x [n, *shape], r [n], t [n], condition) -> instantaneous velocity [n, *shape] of the guiding network.
        network_takes_guidance: Whether the guiding network takes its guidance as an input.
        r: Start times [n] of the samples, which a velocity head may take.
        condition: What the samples are conditioned on.
        dropped: Which conditions [n] were replaced by their null value.
        scale: Strength and interval of each sample.
        null: The null label.
    """

    guidance: Guidance
    velocity: Callable[[Tensor, Tensor, Tensor, Condition], Tensor]
    network_takes_guidance: bool
    r: Tensor
    condition: Condition
    dropped: Tensor
    scale: GuidanceScale
    null: int

    @classmethod
    def of_batch(
        cls,
        batch: Batch,
        guidance: Guidance,
        velocity: VelocityFunction,
        network_takes_guidance: bool,
        null: int,
        like: Tensor,
    ) -> GuidedVelocity:
        """The guidance of a batch.

        Args:
            batch: Samples drawn under guidance, with a condition, drops and scale.
            guidance: The formula.
            velocity: Instantaneous velocity of the guiding network.
            network_takes_guidance: Whether the guiding network takes its guidance as an input.
            null: The null label.
            like: A tensor of the dtype and device to compute in.

        Returns:
            The guidance, on the device of `like` and in its dtype.
        """
        assert batch.condition is not None and batch.dropped is not None and batch.scale is not None
        condition, dropped = move_condition(batch.condition, like), batch.dropped.to(like.device)
        scale = GuidanceScale(*(part.to(like) for part in batch.scale))
        return cls(guidance, velocity, network_takes_guidance, batch.r.to(like), condition, dropped, scale, null)

    def affine_at(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The affine map from v_c to v_g, at any point.

        Args:
            x: Points [n, *shape].
            t: Times [n].

        Returns:
            Factor [n, 1, ...] and shift [n, *shape].
        """
        factors = self.guidance.factors(self.scale, t, self.dropped)
        data, own, null = (factor.view(-1, *[1] * (x.ndim - 1)) for factor in factors)
        shift = torch.zeros_like(x)
        with torch.no_grad():
            if own.any():
                shift = shift + own * self.velocity(x, self.r, t, self.own_condition(t))
            if null.any():
                nothing = self._with_omega(null_of(self.condition, self.null), torch.ones_like(t))
                shift = shift + null * self.velocity(x, self.r, t, nothing)
        return data, shift

    def own_condition(self, t: Tensor) -> Condition:
        """The samples' condition as the guiding network takes them at times t [n].

        A network that takes its guidance gets omega inside the interval, 1 outside it, and always the interval [0, 1]
        (arXiv 2512.02012).
        """
        inside = (t >= self.scale.low) & (t <= self.scale.high)
        return self._with_omega(self.condition, torch.where(inside, self.scale.omega, 1))

    def _with_omega(self, condition: Condition, omega: Tensor) -> Condition:
        if not self.network_takes_guidance:
            return condition
        scale = GuidanceScale(omega, torch.zeros_like(omega), torch.ones_like(omega))
        return with_guidance(condition, scale, omega)

    def select(self, samples: slice) -> GuidedVelocity:
        """The guidance of some of the samples."""
        selected = {name: getattr(self, name)[samples] for name in ("r", "condition", "dropped")}
        return replace(self, **selected, scale=GuidanceScale(*(part[samples] for part in self.scale)))
