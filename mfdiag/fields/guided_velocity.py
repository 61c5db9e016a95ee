"""The guided velocity v_g, which replaces v_c under classifier-free guidance (docs/theory.md#guidance)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mfdiag.fields.inputs import VelocityFunction
from mfdiag.flow.draw import Batch
from mfdiag.flow.guidance import Guidance, GuidanceScale

__all__ = ["GuidedVelocity", "labels_for", "labels_with_guidance", "takes_guidance"]


def labels_with_guidance(labels: Tensor, scale: GuidanceScale, like: Tensor) -> Tensor:
    """Labels for a network that takes its guidance as an input.

    Args:
        labels: Class labels [n].
        scale: Strength omega and interval [low, high] of each sample.
        like: A tensor of the dtype and device of the result.

    Returns:
        [n, 4], with columns label, omega, low and high.
    """
    return torch.stack([labels.to(like), *(part.to(like) for part in scale)], dim=1)


def takes_guidance(network: object) -> bool:
    """Whether the network takes its guidance as an input: labels [n, 4] instead of [n]."""
    return bool(getattr(network, "takes_guidance", getattr(network, "told_guidance", False)))  # the latter until 0.1


def labels_for(network: VelocityFunction, labels: Tensor | None) -> Tensor | None:
    """Convert labels to the form that a network takes.

    Args:
        network: A network, which takes [n, 4] if it has `takes_guidance`, else [n].
        labels: [n], [n, 4] or None.

    Returns:
        [n, 4] if both the labels and the network have guidance, else [n] or None.
    """
    if labels is None or labels.ndim == 1 or takes_guidance(network):
        return labels
    return labels[:, 0].long()


@dataclass(frozen=True)
class GuidedVelocity:
    """v_g = factor v_c + shift, where factor and shift depend on the point, the time and the label alone.

    Given these, only v_c is random. So v_g has the mean factor v + shift and the covariance factor^2 Sigma, and the
    same map turns every conditional distribution of v_c into that of v_g (docs/theory.md#guidance).

    Attributes:
        guidance: The formula.
        velocity: (x [n, *shape], r [n], t [n], labels) -> instantaneous velocity [n, *shape] of the guiding network.
        network_takes_guidance: Whether the guiding network takes its guidance as an input.
        r: Start times [n] of the samples, which a velocity head may take.
        labels: Class labels [n] of the samples.
        dropped: Which labels [n] were replaced by the null label.
        scale: Strength and interval of each sample.
        null: The null label.
    """

    guidance: Guidance
    velocity: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    network_takes_guidance: bool
    r: Tensor
    labels: Tensor
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
            batch: Samples drawn under guidance, with labels, dropped labels and scale.
            guidance: The formula.
            velocity: Instantaneous velocity of the guiding network.
            network_takes_guidance: Whether the guiding network takes its guidance as an input.
            null: The null label.
            like: A tensor of the dtype and device to compute in.

        Returns:
            The guidance, on the device of `like` and in its dtype.
        """
        assert batch.labels is not None and batch.dropped is not None and batch.scale is not None
        labels, dropped = batch.labels.to(like.device), batch.dropped.to(like.device)
        scale = GuidanceScale(*(part.to(like) for part in batch.scale))
        return cls(guidance, velocity, network_takes_guidance, batch.r.to(like), labels, dropped, scale, null)

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
                shift = shift + own * self.velocity(x, self.r, t, self.own_labels(t))
            if null.any():
                labels = torch.full_like(self.labels, self.null)
                shift = shift + null * self.velocity(x, self.r, t, self._with_omega(labels, torch.ones_like(t)))
        return data, shift

    def own_labels(self, t: Tensor) -> Tensor:
        """The samples' labels as the guiding network takes them at times t [n].

        A network that takes its guidance gets omega inside the interval, 1 outside it, and always the interval [0, 1]
        (arXiv 2512.02012).
        """
        inside = (t >= self.scale.low) & (t <= self.scale.high)
        return self._with_omega(self.labels, torch.where(inside, self.scale.omega, 1))

    def _with_omega(self, labels: Tensor, omega: Tensor) -> Tensor:
        if not self.network_takes_guidance:
            return labels
        scale = GuidanceScale(omega, torch.zeros_like(omega), torch.ones_like(omega))
        return labels_with_guidance(labels, scale, omega)

    def select(self, samples: slice) -> GuidedVelocity:
        """The guidance of some of the samples."""
        selected = {name: getattr(self, name)[samples] for name in ("r", "labels", "dropped")}
        return replace(self, **selected, scale=GuidanceScale(*(part[samples] for part in self.scale)))
