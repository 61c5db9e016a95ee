"""Where a batch was taken, and what estimators may evaluate elsewhere: networks, times, further draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from mfdiag.fields.guided_velocity import GuidedVelocity, labels_for, labels_with_guidance
from mfdiag.fields.inputs import Differentiate, Velocity
from mfdiag.flow.draw import Draws

__all__ = ["EvaluationContext"]

_FURTHER = 2**40  # numbers of further samples start here, far beyond those of any run


@dataclass(frozen=True)
class EvaluationContext:
    """The point (x_t, r, t, labels) of each sample and everything that can be evaluated from there, without gradients.

    x [n, *shape]; r, t [n]; labels [n] or None, or [n, 4] where the network is told its guidance. `networks` maps "ema"
    and "teacher" to u(x, r, t, labels) and "head" to v(x, r, t, labels), where they are there; `proxy` names the one
    that gives the run's vhat. `derive` maps tangents dx [m, n, *shape] to du/dx dx at the point, `differentiate` gives
    u and its derivatives anywhere. `draws` and `index` [n] are where the samples come from; `second` tells an
    independent second draw from the first in all further random numbers. `guided` makes v_g of v_c, where it does.
    """

    x: Tensor
    r: Tensor
    t: Tensor
    labels: Tensor | None
    model: Velocity
    networks: Mapping[str, Velocity]
    proxy: str
    derive: Callable[[Tensor], Tensor]
    differentiate: Differentiate
    draws: Draws
    index: np.ndarray
    second: bool = False
    guided: GuidedVelocity | None = None
    guidance_affine: tuple[Tensor, Tensor] | None = None  # the guidance's factor and shift at the point
    proxy_cache: dict[str, tuple[Tensor, Tensor]] = field(
        default_factory=dict
    )  # velocities of networks and du/dx of them

    def velocity(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """u of the measured network at x [n, *shape] and times r, t [n]."""
        with torch.no_grad():
            return self.model(x, r, t, self.labels)

    def guide(self, name: str, x: Tensor, t: Tensor) -> Tensor:
        """Velocity at x [n, *shape], t [n] of the network `name`, "self" being the measured one at r = t."""
        with torch.no_grad():
            if name == "head":
                labels = (
                    self.labels
                    if self.guided is None or not self.guided.network_takes_guidance
                    else self.guided.own_labels(t)
                )
                return self.networks[name](x, self.r, t, labels)
            network = self.model if name == "self" else self.networks[name]
            return network(x, t, t, labels_for(network, self.labels))

    def derivatives(self, r: Tensor, dx: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
        """u [n, *shape] at (x_t, r, t) and its derivatives [m, n, *shape] along dx [m, n, *shape], dt [m, n]."""
        return self.differentiate(self.x, r, self.t, self.labels, dx, dt)

    def conditional(self, velocity: Tensor) -> Tensor:
        """v_c [n, *shape] of the sample's own pair, from `velocity`, what stands for it at the point."""
        if self.guidance_affine is None:
            return velocity
        factor, shift = self.guidance_affine
        return (velocity - shift) / factor

    def guidance(self, x: Tensor, t: Tensor, v_c: Tensor) -> Tensor:
        """What is trained on in the place of v_c at x [n, *shape], t [n]: v_g under guidance, else v_c itself."""
        if self.guided is None:
            return v_c
        factor, shift = self.guided.at(x, t)
        return factor * v_c + shift

    def uniform(self, purpose: str) -> Tensor:
        """A uniform number [n] for each sample."""
        return self._cast(self.draws.uniforms(self._stream(purpose), self.index, 1)[:, 0])

    def data(self, count: int) -> tuple[Tensor, Tensor]:
        """Further x_0 [count, n, *shape] in float64, drawn independently, and whether each has the sample's label."""
        law = self.draws.data
        uniforms = self.draws.uniforms(self._stream("further data"), self.index, count * law.width)
        drawn = [law.sample(part) for part in np.split(uniforms, count, axis=1)]
        points = torch.as_tensor(np.stack([x0 for x0, _ in drawn]), dtype=torch.float64, device=self.x.device)
        return points, torch.stack([self._matching(labels) for _, labels in drawn])

    def _matching(self, labels: np.ndarray | None) -> Tensor:
        if self.labels is None or labels is None:
            return torch.ones(len(self.x), dtype=torch.bool, device=self.x.device)
        drawn = torch.as_tensor(labels, device=self.x.device)
        return drawn == self.labels if self.guided is None else (drawn == self.guided.labels) | self.guided.dropped

    def partners(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Further samples x_t, r, t, labels of the same law: `count` for each sample, one after another [n * count]."""
        numbers = self.index[:, None] * count + np.arange(count)
        batch = self.draws.batch((numbers + _FURTHER * (1 + self.second)).ravel())
        labels = None if batch.labels is None else batch.labels.to(self.x.device)
        if labels is not None and self.labels is not None and self.labels.ndim == 2 and batch.scale is not None:
            labels = labels_with_guidance(labels, batch.scale, self.x)
        return self._cast(batch.x_t), self._cast(batch.r), self._cast(batch.t), labels

    def select(self, samples: slice) -> EvaluationContext:
        """The same for some of the samples, without derivatives."""
        labels = None if self.labels is None else self.labels[samples]
        x, r, t = self.x[samples], self.r[samples], self.t[samples]
        guided = None if self.guided is None else self.guided.select(samples)
        guidance_affine = (
            None
            if self.guidance_affine is None
            else (self.guidance_affine[0][samples], self.guidance_affine[1][samples])
        )
        index = self.index[samples]
        return replace(
            self,
            x=x,
            r=r,
            t=t,
            labels=labels,
            index=index,
            guided=guided,
            guidance_affine=guidance_affine,
            proxy_cache={},
        )

    def unguided(self) -> EvaluationContext:
        """The same without guidance."""
        return replace(self, guided=None, guidance_affine=None)

    def _stream(self, purpose: str) -> str:
        return f"{purpose}, second draw" if self.second else purpose

    def _cast(self, values: np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(values).to(self.x)
