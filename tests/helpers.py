"""Slow, obvious twins of what mfdiag computes, one sample at a time; and rows of its tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mfdiag.flow.data.datasets import Data
from mfdiag.flow.draw import Draws
from mfdiag.gradients.accumulate import Accumulator
from mfdiag.gradients.cells import Cells, make_cells
from mfdiag.gradients.factors import Dense

Velocity = Callable[..., Tensor]


class Sample(NamedTuple):
    """One sample: x_t, v_c and the proxy's velocity [*shape], times and label without axes."""

    x: Tensor
    r: Tensor
    t: Tensor
    y: Tensor | None
    v_c: Tensor
    vhat: Tensor


def samples_of(draws: Draws, count: int, proxy: Velocity | None = None) -> list[Sample]:
    """The first samples of `draws`; without a `proxy`, vhat is the marginal velocity."""
    batch = draws.batch(np.arange(count))
    if proxy is None:
        known = draws.velocity_posterior(batch)
        assert known is not None
        vhat = known.mean
    else:
        vhat = proxy(batch.x_t, batch.t, batch.t, batch.labels).detach()
    labels = [None] * count if batch.labels is None else list(batch.labels)
    return [Sample(*one) for one in zip(batch.x_t, batch.r, batch.t, labels, batch.velocity, vhat, strict=True)]


def velocity_of(model: Velocity, s: Sample) -> Tensor:
    return model(s.x[None], s.r[None], s.t[None], None if s.y is None else s.y[None])[0]


def jacobian_of(model: Velocity, s: Sample) -> tuple[Tensor, Tensor]:
    """du/dx [*shape, *shape] and du/dt [*shape] by reverse mode, row by row."""
    return torch.autograd.functional.jacobian(lambda x, t: velocity_of(model, s._replace(x=x, t=t)), (s.x, s.t))


def residual(model: Velocity, s: Sample, beta: float, gamma: float) -> Tensor:
    """docs/theory.md#plane: e = u + (t-r) [du/dx tangent + du/dt] - target."""
    tangent = s.v_c + beta * (s.vhat - s.v_c)
    target = s.v_c + gamma * (s.vhat - s.v_c)
    dx, dt = jacobian_of(model, s)
    return velocity_of(model, s) + (s.t - s.r) * (torch.tensordot(dx, tangent, s.x.ndim) + dt) - target


def loss_gradient(
    model: nn.Module, s: Sample, beta: float = 0.0, gamma: float = 0.0, p: float = 0.0, eps: float = 1e-3
) -> Tensor:
    """Gradient, flat, of MeanFlow's loss of one sample: u regressed on a target under stop-gradient."""
    e = residual(model, s, beta, gamma)
    u = velocity_of(model, s)
    square = (u - (u - e).detach()).square().sum()
    loss = square / (square.detach() + eps) ** p
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def covariance_trace(gradients: Tensor) -> float:
    """tr Cov of the rows of `gradients` [n, P], unbiased."""
    return float(gradients.var(0).sum())


@dataclass(frozen=True)
class Unknown:
    """The law of another data set, in a form whose posterior mfdiag does not know."""

    data: Data
    name: str = "unknown"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def num_classes(self) -> int:
        return self.data.num_classes

    @property
    def width(self) -> int:
        return self.data.width

    def sample(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return self.data.sample(u)


class Shifted(nn.Module):
    """The velocity of `model` plus a constant: a proxy of known bias."""

    def __init__(self, model: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.model(x, r, t, y) + self.shift


def randomised(module: nn.Module, scale: float = 0.3, seed: int = 0) -> nn.Module:
    """Noise on every parameter, so that none has a zero gradient."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += scale * torch.randn(p.shape, generator=generator).to(p)
    return module


def one_cell(samples: int) -> Cells:
    return make_cells(np.zeros(samples), np.ones(samples), None)


def accumulated(gradients: Tensor, groups: int, cells: Cells) -> Accumulator:
    """Moments of gradients [C, n, P], in the samples' own order, of one parameter."""
    found = Accumulator(cells, {"w": gradients.shape[-1]}, groups, len(gradients) // groups)
    found.add(cells.order, [("w", Dense(gradients[:, cells.order]))])
    found.advance(len(cells.order))
    return found


def rows(frame: pd.DataFrame, **keys: Any) -> pd.DataFrame:
    """Rows whose columns equal `keys`; None matches null."""
    chosen = np.ones(len(frame), bool)
    for name, wanted in keys.items():
        column = frame[name]
        hit = column.isna() if wanted is None else column == wanted
        chosen &= hit.fillna(False).to_numpy(bool)
    return frame[chosen]


def row(frame: pd.DataFrame, **keys: Any) -> pd.Series:
    """The one row that `rows` finds."""
    found = rows(frame, **keys)
    assert len(found) == 1, f"{len(found)} rows for {keys}"
    return found.iloc[0]
