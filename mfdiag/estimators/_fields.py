"""Everything estimators are made of at one batch: u, its directional derivatives and the velocities.

One primal pass serves all tangents: forward mode under vmap, or derivatives that an engine hands in. Where the whole
Jacobian is asked for and the data are low-dimensional, the tangents are the coordinate basis and every other derivative
follows by multiplication.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from mfdiag.errors import InputError
from mfdiag.estimators._around import Around, Differentiate, Velocity
from mfdiag.flow.draw import Draws

__all__ = [
    "FULL_JACOBIAN_DIM",
    "PROBES",
    "Fields",
    "Jacobian",
    "Known",
    "NoForwardModeError",
    "Velocity",
    "coordinate_basis",
    "derivatives",
    "evaluate",
    "random_signs",
]

Derivatives = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # tangents dx, dt -> as `derivatives` returns

FULL_JACOBIAN_DIM = 64  # above it the Jacobian is probed with random signs
PROBES = 8
_FEW_TANGENTS = 6  # up to so many, one backward pass each is cheaper than a forward-mode pass of its own
_TANGENTS_AT_ONCE = 16
_NO_FORWARD_MODE = ("forward AD", "forward-mode", "forward mode", "functorch", "vmap")  # in what torch says
_SHARED_PRIMAL: Any = (None, 0)  # u once, its derivatives tangent by tangent


@dataclass(frozen=True)
class Known:
    """What a known posterior adds, all [n, *shape].

    `delta` = v_c - v_c' of two independent draws given x_t, where a second draw was asked for.
    """

    bias: Tensor  # b = vhat - v
    along_bias: Tensor  # du/dx b
    variance: Tensor  # diagonal of Sigma
    delta: Tensor | None = None
    along_delta: Tensor | None = None  # du/dx delta

    def part(self, chosen: slice) -> Known:
        """What is known of some of the samples."""
        values = (getattr(self, entry.name) for entry in fields(self))
        return Known(*(None if value is None else value[chosen] for value in values))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Jacobian:
    """A z for probe vectors z, both [m, n, d]; `full` where the probes are the coordinate basis."""

    probes: Tensor
    a_probes: Tensor
    full: bool


@dataclass(frozen=True)
class Fields:
    """At one batch, all [n, *shape] in the model's dtype; `gap` = t - r and other times are ready to broadcast.

    `around` evaluates networks elsewhere, for the methods that need it.
    """

    u: Tensor
    v_c: Tensor
    vhat: Tensor
    gap: Tensor
    along_v: Tensor  # du/dx v_c + du/dt
    along_shift: Tensor  # du/dx (vhat - v_c)
    known: Known | None = None
    jacobian: Jacobian | None = None
    around: Around | None = None
    weight: Tensor | None = None  # [n], of the coupling; None where all samples weigh 1

    def weighed(self, values: Tensor, axis: int = 0) -> Tensor:
        """`values`, whose axis `axis` counts samples, times the coupling's weight of each."""
        if self.weight is None:
            return values
        return values * self.weight.view(-1, *[1] * (values.ndim - axis - 1))

    @property
    def plane(self) -> tuple[Tensor, Tensor, Tensor]:
        """e_0, e_b, e_g of theory, section 2: the residual is e_0 + beta e_b + gamma e_g."""
        shift = self.vhat - self.v_c
        return self.u + self.gap * self.along_v - self.v_c, self.gap * self.along_shift, -shift

    # -- evaluations elsewhere ----------------------------------------------------------------------------------

    @property
    def x(self) -> Tensor:
        """x_t."""
        return self._there.x

    @property
    def r(self) -> Tensor:
        return self._there.r.view_as(self.gap)

    @property
    def t(self) -> Tensor:
        return self._there.t.view_as(self.gap)

    def velocity(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """u(x, r, t) of the measured network, without gradient."""
        return self._there.velocity(x, r.flatten(), t.flatten())

    def guide(self, name: str, x: Tensor, t: Tensor) -> Tensor:
        """Velocity v(x, t) of the network `name`: "ema", "head", "self" or "teacher"."""
        return self._there.guide(name, x, t.flatten())

    def derivative(self, r: Tensor) -> Tensor:
        """du/dx v_c + du/dt at (x_t, r, t) for another r, without gradient."""
        return self._there.derivatives(r.flatten(), self.v_c[None], torch.ones_like(self._there.t)[None])[1][0]

    def path(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """The point at `time` of the sample's own path, and its conditional velocity there, guided as v_c is."""
        there, path = self._there, self._there.draws.path
        v_c = there.conditional(self.v_c)
        t, s = there.t, time.flatten()
        alpha, sigma, (slope, rise) = path.alpha(t), path.sigma(t), path.rates(t)
        # x_t = alpha x_0 + sigma x_1 and v_c = alpha' x_0 + sigma' x_1, solved for the ends
        scale, *weights = (a.view_as(self.gap) for a in (alpha * rise - slope * sigma, alpha, sigma, slope, rise))
        alpha, sigma, slope, rise = weights
        x0, x1 = (rise * there.x - sigma * v_c) / scale, (alpha * v_c - slope * there.x) / scale
        point = path.point(x0, x1, s)
        return point, there.guidance(point, s, path.velocity(x0, x1, s))

    def uniform(self, purpose: str) -> Tensor:
        """A uniform number for each sample, ready to broadcast; it depends on the seed, the sample and `purpose`."""
        return self._there.uniform(purpose).view_as(self.gap)

    def further_data(self, count: int) -> tuple[Tensor, Tensor]:
        """Points x_0 [count, n, *shape] of the data, drawn for each sample, and whether they have its label."""
        return self._there.data(count)

    def partners(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Other samples x_t, r, t, labels of the same law, `count` for each sample, one after another [n * count]."""
        return self._there.partners(count)

    def guided_by(self, name: str | None) -> Fields:
        """The fields with the velocity of the network `name` as vhat; where a run has no "ema", its own proxy."""
        if self.around is None or name in (None, "run", self.around.proxy):
            return self
        if name == "ema" and name not in self.around.networks:
            return self
        assert name is not None
        kept = self.around.kept
        if name not in kept:
            change = self.guide(name, self.x, self.t) - self.vhat
            kept[name] = change, self.around.derive(change[None])[0]
        change, along = kept[name]
        known = self.known
        if known is not None:
            known = replace(known, bias=known.bias + change, along_bias=known.along_bias + along)
        return replace(self, vhat=self.vhat + change, along_shift=self.along_shift + along, known=known)

    def with_velocity(self, v_c: Tensor) -> Fields:
        """The fields with another v_c, by one more derivative."""
        return self._at(v_c, self._there.derive((self.v_c - v_c)[None])[0])

    def unguided(self) -> Fields:
        """The fields with the sample's own v_c in the place of v_g, by one more derivative."""
        there = self._there
        return replace(self.with_velocity(there.conditional(self.v_c)), around=there.unguided())

    # -- the conditional law ------------------------------------------------------------------------------------

    def mean_field(self) -> Fields:
        """The same with v_c replaced by its conditional mean v: residuals affine in v_c become their own mean."""
        if self.known is None:
            raise InputError("The conditional mean needs data whose marginal velocity is known.")
        bias, along = self.known.bias, self.known.along_bias
        return self._at(self.vhat - bias, along - self.along_shift)

    def other_draw(self) -> Fields:
        """The same x_t with an independent draw of v_c: the difference of residuals is conditional noise alone."""
        if self.known is None or self.known.delta is None or self.known.along_delta is None:
            raise InputError("A second posterior draw needs data whose marginal velocity is known.")
        other = self._at(self.v_c - self.known.delta, self.known.along_delta)
        return other if self.around is None else replace(other, around=replace(self.around, second=True))

    def part(self, chosen: slice) -> Fields:
        """The fields of some of the samples, without the Jacobian."""
        names = ("u", "v_c", "vhat", "gap", "along_v", "along_shift")
        around = None if self.around is None else self.around.part(chosen)
        known = None if self.known is None else self.known.part(chosen)
        weight = None if self.weight is None else self.weight[chosen]
        cut = {name: getattr(self, name)[chosen] for name in names}
        return Fields(**cut, known=known, around=around, weight=weight)

    @property
    def _there(self) -> Around:
        assert self.around is not None, "these fields were taken without networks"
        return self.around

    def _at(self, v_c: Tensor, along: Tensor) -> Fields:
        """The fields with v_c replaced, given `along` = du/dx (old v_c - new v_c)."""
        along_v, along_shift = self.along_v - along, self.along_shift + along
        return Fields(self.u, v_c, self.vhat, self.gap, along_v, along_shift, around=self.around, weight=self.weight)


class NoForwardModeError(InputError):
    """The network has no forward-mode derivative; `reason` is torch's."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The model has no forward-mode derivative, which du/dx v + du/dt needs: {reason}. Leave --derivative at "
            "auto, or pass --derivative difference."
        )
        self.reason = reason


@contextmanager
def twice_differentiable(wanted: bool = True) -> Iterator[None]:
    """Attention in elementary steps: the fused kernels know neither forward mode nor a second derivative."""
    if not wanted:
        yield
        return
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # nn.MultiheadAttention in eval mode
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def coordinate_basis(x: Tensor) -> Tensor:
    """The coordinate basis [d, n, *shape] at each of x [n, *shape]."""
    d = x[0].numel()
    return torch.eye(d, dtype=x.dtype, device=x.device).view(d, 1, *x.shape[1:]).expand(d, *x.shape)


def random_signs(draws: Draws, purpose: str, index: np.ndarray, x: Tensor) -> Tensor:
    """Random signs [PROBES, n, *shape] like x [n, *shape], of the samples `index` for one purpose."""
    u = draws.uniforms(purpose, index, PROBES * x[0].numel())
    signs = np.where(u < 0.5, -1.0, 1.0).reshape(len(x), PROBES, *x.shape[1:])
    return torch.as_tensor(signs).to(x).transpose(0, 1).contiguous()


def _split(tangents: Tensor) -> tuple[Tensor, ...]:
    return tangents.split(_TANGENTS_AT_ONCE)


def derivatives(
    model: Velocity, x: Tensor, r: Tensor, t: Tensor, labels: Tensor | None, dx: Tensor, dt: Tensor
) -> tuple[Tensor, Tensor]:
    """u [n, *shape] and its derivatives [m, n, *shape] along the tangents dx [m, n, *shape], dt [m, n] (dr = 0).

    Fused attention has no forward-mode derivative, hence the MATH backend, also for nn.MultiheadAttention.
    """

    def one(dx_: Tensor, dt_: Tensor) -> tuple[Tensor, ...]:
        return jvp(lambda x_, t_: model(x_, r, t_, labels), (x, t), (dx_, dt_))

    with torch.no_grad(), twice_differentiable():
        try:
            parts = [vmap(one, out_dims=_SHARED_PRIMAL)(*part) for part in zip(*map(_split, (dx, dt)), strict=True)]
            return parts[0][0], torch.cat([along for _, along in parts])
        except (RuntimeError, NotImplementedError) as error:
            if not any(words in str(error) for words in _NO_FORWARD_MODE):
                raise
            raise NoForwardModeError(str(error).splitlines()[0].partition(". ")[0]) from error


def evaluate(
    model: Velocity,
    x: Tensor,
    r: Tensor,
    t: Tensor,
    labels: Tensor | None,
    v_c: Tensor,
    vhat: Tensor,
    *,
    marginal: Tensor | None = None,
    variance: Tensor | None = None,
    other: Tensor | None = None,
    jacobian: bool = False,
    signs: Tensor | None = None,
    along: Derivatives | None = None,
    differentiate: Differentiate | None = None,
) -> Fields:
    """Fields at x = x_t. `marginal` (v) and `variance` (diagonal of Sigma) come together; `other` is a second draw.

    `jacobian` asks for A on the coordinate basis (d <= 64), else on the random signs [m, n, *shape]. `along` replaces
    `derivatives` for few tangents, `differentiate` for all others.
    """

    def differentiated(dx: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
        if along is not None and len(dx) <= _FEW_TANGENTS:
            return along(dx, dt)
        if differentiate is not None:
            return differentiate(x, r, t, labels, dx, dt)
        return derivatives(model, x, r, t, labels, dx, dt)

    n, d = len(x), x[0].numel()
    gap = (t - r).view(-1, *[1] * (x.ndim - 1))
    directions = [v_c, vhat - v_c]
    if marginal is not None:
        directions.append(vhat - marginal)
    if other is not None:
        directions.append(v_c - other)
    if jacobian and d <= FULL_JACOBIAN_DIM:
        basis = coordinate_basis(x)
        dx = torch.cat([basis, torch.zeros_like(x)[None]])
        dt = torch.zeros(d + 1, n, dtype=x.dtype, device=x.device)
        dt[-1] = 1
        u, found = differentiated(dx, dt)
        columns = found[:d].flatten(2)  # [d, n, d]: entry j is du/dx_j
        ways = [torch.einsum("jni,nj->ni", columns, way.flatten(1)).view(x.shape) for way in directions]
        ways[0] = ways[0] + found[-1]
        probed = Jacobian(basis.flatten(2), columns * gap.flatten(1), full=True)
    else:
        probes = signs if jacobian and signs is not None else x.new_empty(0, *x.shape)
        dx = torch.cat([torch.stack(directions), probes])
        dt = torch.zeros(len(dx), n, dtype=x.dtype, device=x.device)
        dt[0] = 1
        u, found = differentiated(dx, dt)
        ways = list(found[: len(directions)])
        probed = Jacobian(probes.flatten(2), (found[len(directions) :] * gap).flatten(2), full=False)
    if u.shape != x.shape:
        raise InputError(f"The model returned shape {tuple(u.shape)} where u of shape {tuple(x.shape)} was expected.")
    known = None
    if marginal is not None and variance is not None:
        second = (directions[3], ways[3]) if other is not None else (None, None)
        known = Known(directions[2], ways[2], variance, *second)
    return Fields(u, v_c, vhat, gap, ways[0], ways[1], known, probed if jacobian else None)
