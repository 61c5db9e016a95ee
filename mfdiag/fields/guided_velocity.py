"""The velocity that guidance puts in the place of v_c, at the samples of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mfdiag.fields.inputs import Velocity
from mfdiag.flow.draw import Batch
from mfdiag.flow.guidance import Guidance, GuidanceScale

__all__ = ["GuidedVelocity", "labels_for", "labels_with_guidance", "takes_guidance"]


def labels_with_guidance(labels: Tensor, scale: GuidanceScale, like: Tensor) -> Tensor:
    """Labels of a network that takes its guidance: [n, 4], columns label, omega, low and high, in `like`'s dtype."""
    return torch.stack([labels.to(like), *(part.to(like) for part in scale)], dim=1)


def takes_guidance(network: object) -> bool:
    """Whether the network takes its guidance as an input: labels as [n, 4] instead of [n]."""
    return bool(getattr(network, "takes_guidance", getattr(network, "told_guidance", False)))  # the latter until 0.1


def labels_for(network: Velocity, labels: Tensor | None) -> Tensor | None:
    """`labels`, with guidance or without, as `network` takes them: [n, 4] only where it has `takes_guidance`."""
    if labels is None or labels.ndim == 1 or takes_guidance(network):
        return labels
    return labels[:, 0].long()


@dataclass(frozen=True)
class GuidedVelocity:
    """v_g = factor v_c + shift, where factor and shift depend on point, time and label alone.

    Given these only v_c is random, so that v_g has the mean factor v + shift and the covariance factor^2 Sigma: every
    conditional law of v_c becomes that of v_g by the same map. `velocity` maps x [n, *shape], r, t [n] and labels to
    the guiding network's instantaneous velocity; `network_takes_guidance` says whether the guidance is one of its
    inputs. `labels` [n] are the samples' own, `null` is the null label.
    """

    law: Guidance
    velocity: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    network_takes_guidance: bool
    r: Tensor
    labels: Tensor
    dropped: Tensor
    scale: GuidanceScale
    null: int

    @classmethod
    def of(
        cls, batch: Batch, law: Guidance, velocity: Velocity, network_takes_guidance: bool, null: int, like: Tensor
    ) -> GuidedVelocity:
        """The guidance of `batch`, on the device of `like` and in its dtype."""
        assert batch.labels is not None and batch.dropped is not None and batch.scale is not None
        labels, dropped = batch.labels.to(like.device), batch.dropped.to(like.device)
        scale = GuidanceScale(*(part.to(like) for part in batch.scale))
        return cls(law, velocity, network_takes_guidance, batch.r.to(like), labels, dropped, scale, null)

    def at(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """factor [n, 1, ...] and shift [n, *shape] at x [n, *shape], t [n]."""
        factors = self.law.factors(self.scale, t, self.dropped)
        data, own, null = (factor.view(-1, *[1] * (x.ndim - 1)) for factor in factors)
        shift = torch.zeros_like(x)
        with torch.no_grad():
            if own.any():
                shift = shift + own * self.velocity(x, self.r, t, self.own_labels(t))
            if null.any():
                labels = torch.full_like(self.labels, self.null)
                shift = shift + null * self.velocity(x, self.r, t, self._labels(labels, torch.ones_like(t)))
        return data, shift

    def own_labels(self, t: Tensor) -> Tensor:
        """The samples' labels as the guiding network takes them at times t [n].

        A head is told omega within the interval and 1 beyond it, as for all times (arXiv 2512.02012).
        """
        inside = (t >= self.scale.low) & (t <= self.scale.high)
        return self._labels(self.labels, torch.where(inside, self.scale.omega, 1))

    def _labels(self, labels: Tensor, omega: Tensor) -> Tensor:
        if not self.network_takes_guidance:
            return labels
        scale = GuidanceScale(omega, torch.zeros_like(omega), torch.ones_like(omega))
        return labels_with_guidance(labels, scale, omega)

    def select(self, samples: slice) -> GuidedVelocity:
        """The same for some of the samples."""
        selected = {name: getattr(self, name)[samples] for name in ("r", "labels", "dropped")}
        return replace(self, **selected, scale=GuidanceScale(*(part[samples] for part in self.scale)))
