"""Where a batch was taken, and what estimators may evaluate elsewhere: networks, times, further draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from mfdiag.flow.draw import Draws

__all__ = ["Around", "Velocity"]

Velocity = Callable[..., Tensor]  # (x [n, *shape], r [n], t [n], labels [n] or None) -> u [n, *shape]

_FURTHER = 2**40  # numbers of further samples start here, far beyond those of any run


@dataclass(frozen=True)
class Around:
    """The point (x_t, r, t, labels) of each sample and everything that can be evaluated from there, without gradients.

    x [n, *shape]; r, t [n]; labels [n] or None. `networks` maps "ema" and "teacher" to u(x, r, t, labels) and "head"
    to v(x, t, labels), where they are there; `proxy` names the one that gives the run's vhat. `derive` maps tangents
    dx [m, n, *shape] to du/dx dx at the point. `draws` and `index` [n] are where the samples come from; `second`
    tells an independent second draw from the first in all further random numbers.
    """

    x: Tensor
    r: Tensor
    t: Tensor
    labels: Tensor | None
    model: Velocity
    networks: Mapping[str, Velocity]
    proxy: str
    derive: Callable[[Tensor], Tensor]
    draws: Draws
    index: np.ndarray
    second: bool = False
    kept: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # velocities of networks and du/dx of them

    def velocity(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """u of the measured network at x [n, *shape] and times r, t [n]."""
        with torch.no_grad():
            return self.model(x, r, t, self.labels)

    def guide(self, name: str, x: Tensor, t: Tensor) -> Tensor:
        """Velocity at x [n, *shape], t [n] of the network `name`, "self" being the measured one at r = t."""
        with torch.no_grad():
            if name == "head":
                return self.networks[name](x, t, self.labels)
            network = self.model if name == "self" else self.networks[name]
            return network(x, t, t, self.labels)

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
        return torch.as_tensor(labels, device=self.x.device) == self.labels

    def partners(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Further samples x_t, r, t, labels of the same law: `count` for each sample, one after another [n * count]."""
        numbers = self.index[:, None] * count + np.arange(count)
        batch = self.draws.batch((numbers + _FURTHER * (1 + self.second)).ravel())
        labels = None if batch.labels is None else batch.labels.to(self.x.device)
        return self._cast(batch.x_t), self._cast(batch.r), self._cast(batch.t), labels

    def part(self, chosen: slice) -> Around:
        """The same for some of the samples, without derivatives."""
        labels = None if self.labels is None else self.labels[chosen]
        x, r, t = self.x[chosen], self.r[chosen], self.t[chosen]
        return replace(self, x=x, r=r, t=t, labels=labels, index=self.index[chosen], kept={})

    def _stream(self, purpose: str) -> str:
        return f"{purpose}, second draw" if self.second else purpose

    def _cast(self, values: np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(values).to(self.x)
