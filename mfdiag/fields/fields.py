"""Everything estimators are made of at one batch: u, its directional derivatives and the velocities."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from mfdiag.errors import InputError
from mfdiag.fields.context import EvaluationContext
from mfdiag.fields.inputs import DerivativesAtPoint, Inputs
from mfdiag.fields.probes import FULL_JACOBIAN_DIM, coordinate_basis

__all__ = ["Fields", "Jacobian", "Known", "Velocities", "compute_fields"]


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

    def select(self, samples: slice) -> Known:
        """What is known of some of the samples."""
        values = (getattr(self, entry.name) for entry in fields(self))
        return Known(*(None if value is None else value[samples] for value in values))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Jacobian:
    """A z for probe vectors z, both [m, n, d]; `full` where the probes are the coordinate basis."""

    probes: Tensor
    a_probes: Tensor
    full: bool


@dataclass(frozen=True)
class Fields:
    """At one batch, all [n, *shape] in the model's dtype; `gap` = t - r and other times are ready to broadcast.

    `context` evaluates networks elsewhere, for the methods that need it.
    """

    u: Tensor
    v_c: Tensor
    vhat: Tensor
    gap: Tensor
    along_v: Tensor  # du/dx v_c + du/dt
    along_shift: Tensor  # du/dx (vhat - v_c)
    known: Known | None = None
    jacobian: Jacobian | None = None
    context: EvaluationContext | None = None
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
        return self._context.x

    @property
    def r(self) -> Tensor:
        return self._context.r.view_as(self.gap)

    @property
    def t(self) -> Tensor:
        return self._context.t.view_as(self.gap)

    def velocity(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """u(x, r, t) of the measured network, without gradient."""
        return self._context.velocity(x, r.flatten(), t.flatten())

    def guide(self, name: str, x: Tensor, t: Tensor) -> Tensor:
        """Velocity v(x, t) of the network `name`: "ema", "head", "self" or "teacher"."""
        return self._context.guide(name, x, t.flatten())

    def derivative(self, r: Tensor) -> Tensor:
        """du/dx v_c + du/dt at (x_t, r, t) for another r, without gradient."""
        return self._context.derivatives(r.flatten(), self.v_c[None], torch.ones_like(self._context.t)[None])[1][0]

    def path(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """The point at `time` of the sample's own path, and its conditional velocity there, guided as v_c is."""
        context, path = self._context, self._context.draws.path
        v_c = context.conditional(self.v_c)
        t, s = context.t, time.flatten()
        alpha, sigma, (slope, rise) = path.alpha(t), path.sigma(t), path.rates(t)
        # x_t = alpha x_0 + sigma x_1 and v_c = alpha' x_0 + sigma' x_1, solved for the ends
        scale, *weights = (a.view_as(self.gap) for a in (alpha * rise - slope * sigma, alpha, sigma, slope, rise))
        alpha, sigma, slope, rise = weights
        x0, x1 = (rise * context.x - sigma * v_c) / scale, (alpha * v_c - slope * context.x) / scale
        point = path.point(x0, x1, s)
        return point, context.guidance(point, s, path.velocity(x0, x1, s))

    def uniform(self, purpose: str) -> Tensor:
        """A uniform number for each sample, ready to broadcast; it depends on the seed, the sample and `purpose`."""
        return self._context.uniform(purpose).view_as(self.gap)

    def further_data(self, count: int) -> tuple[Tensor, Tensor]:
        """Points x_0 [count, n, *shape] of the data, drawn for each sample, and whether they have its label."""
        return self._context.data(count)

    def partners(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Other samples x_t, r, t, labels of the same law, `count` for each sample, one after another [n * count]."""
        return self._context.partners(count)

    def guided_by(self, name: str | None) -> Fields:
        """The fields with the velocity of the network `name` as vhat; where a run has no "ema", its own proxy."""
        if self.context is None or name in (None, "run", self.context.proxy):
            return self
        if name == "ema" and name not in self.context.networks:
            return self
        assert name is not None
        cache = self.context.proxy_cache
        if name not in cache:
            change = self.guide(name, self.x, self.t) - self.vhat
            cache[name] = change, self.context.derive(change[None])[0]
        change, along = cache[name]
        known = self.known
        if known is not None:
            known = replace(known, bias=known.bias + change, along_bias=known.along_bias + along)
        return replace(self, vhat=self.vhat + change, along_shift=self.along_shift + along, known=known)

    def with_velocity(self, v_c: Tensor) -> Fields:
        """The fields with another v_c, by one more derivative."""
        return self._at(v_c, self._context.derive((self.v_c - v_c)[None])[0])

    def unguided(self) -> Fields:
        """The fields with the sample's own v_c in the place of v_g, by one more derivative."""
        context = self._context
        return replace(self.with_velocity(context.conditional(self.v_c)), context=context.unguided())

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
        return other if self.context is None else replace(other, context=replace(self.context, second=True))

    def select(self, samples: slice) -> Fields:
        """The fields of some of the samples, without the Jacobian."""
        names = ("u", "v_c", "vhat", "gap", "along_v", "along_shift")
        context = None if self.context is None else self.context.select(samples)
        known = None if self.known is None else self.known.select(samples)
        weight = None if self.weight is None else self.weight[samples]
        selected = {name: getattr(self, name)[samples] for name in names}
        return Fields(**selected, known=known, context=context, weight=weight)

    @property
    def _context(self) -> EvaluationContext:
        assert self.context is not None, "these fields were taken without networks"
        return self.context

    def _at(self, v_c: Tensor, along: Tensor) -> Fields:
        """The fields with v_c replaced, given `along` = du/dx (old v_c - new v_c)."""
        along_v, along_shift = self.along_v - along, self.along_shift + along
        return Fields(self.u, v_c, self.vhat, self.gap, along_v, along_shift, context=self.context, weight=self.weight)


@dataclass(frozen=True)
class Velocities:
    """The velocities at x_t that fields are computed from, all [n, *shape].

    `marginal` (v) and `variance` (diagonal of Sigma) come together, where the posterior is known; `second_draw` is an
    independent draw of v_c given x_t.
    """

    conditional: Tensor
    proxy: Tensor
    marginal: Tensor | None = None
    variance: Tensor | None = None
    second_draw: Tensor | None = None


def compute_fields(
    inputs: Inputs,
    velocities: Velocities,
    differentiate: DerivativesAtPoint,
    *,
    jacobian: bool = False,
    probes: Tensor | None = None,
) -> Fields:
    """Compute the fields at x = x_t.

    One call of `differentiate` serves all directions. Where the whole Jacobian is wanted and d is small, its tangents
    are the coordinate basis and every other derivative follows by multiplication.

    Args:
        inputs: Where the network is evaluated.
        velocities: v_c, vhat and, where the posterior is known, v.
        differentiate: Derivatives of u at `inputs`.
        jacobian: Whether to measure A: on the coordinate basis for d <= FULL_JACOBIAN_DIM, else along `probes`.
        probes: Random signs [m, n, *shape].

    Returns:
        The fields, without context and weight.

    Raises:
        InputError: u has not the shape of x.
    """
    x, r, t, _ = inputs
    v_c, vhat, marginal, second = (
        velocities.conditional,
        velocities.proxy,
        velocities.marginal,
        velocities.second_draw,
    )
    n, d = len(x), x[0].numel()
    gap = (t - r).view(-1, *[1] * (x.ndim - 1))
    directions = [v_c, vhat - v_c]
    if marginal is not None:
        directions.append(vhat - marginal)
    if second is not None:
        directions.append(v_c - second)
    if jacobian and d <= FULL_JACOBIAN_DIM:
        basis = coordinate_basis(x)
        dx = torch.cat([basis, torch.zeros_like(x)[None]])
        dt = torch.zeros(d + 1, n, dtype=x.dtype, device=x.device)
        dt[-1] = 1
        u, derivatives = differentiate(dx, dt)
        columns = derivatives[:d].flatten(2)  # [d, n, d]: entry j is du/dx_j
        along = [torch.einsum("jni,nj->ni", columns, one.flatten(1)).view(x.shape) for one in directions]
        along[0] = along[0] + derivatives[-1]
        measured = Jacobian(basis.flatten(2), columns * gap.flatten(1), full=True)
    else:
        probes = probes if jacobian and probes is not None else x.new_empty(0, *x.shape)
        dx = torch.cat([torch.stack(directions), probes])
        dt = torch.zeros(len(dx), n, dtype=x.dtype, device=x.device)
        dt[0] = 1
        u, derivatives = differentiate(dx, dt)
        along = list(derivatives[: len(directions)])
        measured = Jacobian(probes.flatten(2), (derivatives[len(directions) :] * gap).flatten(2), full=False)
    if u.shape != x.shape:
        raise InputError(f"The model returned shape {tuple(u.shape)} where u of shape {tuple(x.shape)} was expected.")
    known = None
    if marginal is not None and velocities.variance is not None:
        delta = (directions[3], along[3]) if second is not None else (None, None)
        known = Known(directions[2], along[2], velocities.variance, *delta)
    return Fields(u, v_c, vhat, gap, along[0], along[1], known, measured if jacobian else None)
