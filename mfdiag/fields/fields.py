"""Everything that estimators are made of at one batch: u, its directional derivatives and the velocities.

Symbols are those of docs/theory.md#notation.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from mfdiag.errors import InputError
from mfdiag.fields.context import EvaluationContext
from mfdiag.fields.inputs import DerivativesAtPoint, Inputs
from mfdiag.fields.probes import FULL_JACOBIAN_DIM, coordinate_basis
from mfdiag.flow.conditions import Condition

__all__ = ["Fields", "Jacobian", "PosteriorFields", "Velocities", "compute_fields"]


@dataclass(frozen=True)
class PosteriorFields:
    """What is known in addition if the posterior of v_c given x_t is known, all [n, *shape].

    Attributes:
        bias: b = vhat - v, the bias of the proxy.
        jvp_bias: du/dx b.
        variance: Diagonal of Sigma = Cov(v_c given x_t).
        delta: v_c minus an independent second draw of it given x_t; None if no second draw was asked for.
        jvp_delta: du/dx delta, or None.
    """

    bias: Tensor
    jvp_bias: Tensor
    variance: Tensor
    delta: Tensor | None = None
    jvp_delta: Tensor | None = None

    def select(self, samples: slice) -> PosteriorFields:
        """The same quantities for some of the samples."""
        values = (getattr(self, entry.name) for entry in fields(self))
        selected = (None if value is None else value[samples] for value in values)
        return PosteriorFields(*selected)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Jacobian:
    """Products of A = (t-r) du/dx with probe vectors, d = number of coordinates.

    Attributes:
        probes: m probe vectors for each sample, [m, n, d].
        products: A times each probe, [m, n, d].
        is_full: Whether the probes are the coordinate basis (m = d), so that `products` are the columns of A.
    """

    probes: Tensor
    products: Tensor
    is_full: bool


@dataclass(frozen=True)
class Fields:
    """What a residual or a loss is computed from, for the n samples of a batch, in the dtype of the network.

    All tensors are [n, *shape] unless it says otherwise, without gradient. Under guidance `v_c` is the guided velocity
    v_g, and everything that derives from it follows (docs/theory.md#guidance).

    Attributes:
        u: The network's average velocity u(x_t, r, t).
        v_c: Conditional velocity of the sample's own pair; x_1 - x_0 on the linear path.
        vhat: Proxy of the marginal velocity, such as u_ema(x_t, t, t); `--proxy` chooses it.
        gap: t - r, [n, 1, ...], ready to broadcast.
        jvp_v_c: The derivative along the path, du/dx v_c + du/dt.
        jvp_shift: du/dx (vhat - v_c).
        posterior: Quantities that need the posterior of v_c given x_t; None if it is not known or was not asked for.
        jacobian: Products with the Jacobian; None if it was not asked for.
        context: What the methods below evaluate networks with; None for fields computed from tensors alone.
        weight: Weight of each sample in the loss, [n], from a coupling or from importance sampling of (r, t); None if
            all weights are 1.
    """

    u: Tensor
    v_c: Tensor
    vhat: Tensor
    gap: Tensor
    jvp_v_c: Tensor
    jvp_shift: Tensor
    posterior: PosteriorFields | None = None
    jacobian: Jacobian | None = None
    context: EvaluationContext | None = None
    weight: Tensor | None = None

    @property
    def plane(self) -> tuple[Tensor, Tensor, Tensor]:
        """e_0, e_b and e_g: the residual at (beta, gamma) is e_0 + beta e_b + gamma e_g (docs/theory.md#plane).

        e_0 is MeanFlow's own residual.
        """
        shift = self.vhat - self.v_c
        return self.u + self.gap * self.jvp_v_c - self.v_c, self.gap * self.jvp_shift, -shift

    @property
    def x(self) -> Tensor:
        """The points x_t, [n, *shape]."""
        return self._context.x

    @property
    def r(self) -> Tensor:
        """Start times [n, 1, ...], ready to broadcast."""
        return self._context.r.view_as(self.gap)

    @property
    def t(self) -> Tensor:
        """End times [n, 1, ...], ready to broadcast."""
        return self._context.t.view_as(self.gap)

    def apply_weight(self, values: Tensor, axis: int = 0) -> Tensor:
        """Multiply by the weight of each sample.

        Args:
            values: Any tensor with an axis of n samples.
            axis: That axis.

        Returns:
            `values` times `weight`; `values` itself if all weights are 1.
        """
        if self.weight is None:
            return values
        return values * self.weight.view(-1, *[1] * (values.ndim - axis - 1))

    # -- evaluations elsewhere, without gradient; times broadcast against x -----------------------------------------

    def average_velocity(self, x: Tensor, r: Tensor, t: Tensor, network: str = "self") -> Tensor:
        """A network of the run at any point and times.

        An estimator lists the networks that it uses in `Needs.networks`.

        Args:
            x: Points [n, *shape].
            r: Start times.
            t: End times.
            network: "self" for the measured network, or "ema".

        Returns:
            u(x, r, t) with the samples' labels, [n, *shape].
        """
        return self._context.average_velocity(x, r.flatten(), t.flatten(), network)

    def instantaneous_velocity(self, network: str, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at one time of a network of the run.

        An estimator lists the networks that it uses in `Needs.networks`.

        Args:
            network: "self" for the measured network, or "ema", "head" or "teacher".
            x: Points [n, *shape].
            t: Times.

        Returns:
            u(x, t, t), or v(x, t) of the velocity head, [n, *shape].
        """
        return self._context.instantaneous_velocity(network, x, t.flatten())

    def jvp_v_c_at(self, r: Tensor) -> Tensor:
        """du/dx v_c + du/dt at (x_t, r, t), for another start time r; [n, *shape]."""
        return self.derivative_at(r, self.v_c)

    def derivative_at(self, r: Tensor, dx: Tensor, dt: float = 1.0) -> Tensor:
        """The measured network's derivative at (x_t, r, t), for any start time.

        Args:
            r: Start times.
            dx: Tangent of x, [n, *shape].
            dt: Tangent of t.

        Returns:
            du/dx dx + du/dt dt, [n, *shape].
        """
        context = self._context
        return context.derivatives(r.flatten(), dx[None], torch.full_like(context.t, dt)[None])[1][0]

    def path_at(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Another point of the sample's own path from x_0 to x_1.

        Needs a pair of the sample's own (`Needs.pair`). `time` is the time of the point.

        Returns:
            The point, and the conditional velocity there (guided as `v_c` is), both [n, *shape].
        """
        context, path = self._context, self._context.draws.path
        v_c = context.remove_guidance(self.v_c)
        t, time = context.t, time.flatten()
        alpha, sigma, (alpha_rate, sigma_rate) = path.alpha(t), path.sigma(t), path.rates(t)
        # x_t = alpha x_0 + sigma x_1 and v_c = alpha' x_0 + sigma' x_1, solved for the ends
        determinant = (alpha * sigma_rate - alpha_rate * sigma).view_as(self.gap)
        alpha, sigma, alpha_rate, sigma_rate = (a.view_as(self.gap) for a in (alpha, sigma, alpha_rate, sigma_rate))
        x0 = (sigma_rate * context.x - sigma * v_c) / determinant
        x1 = (alpha * v_c - alpha_rate * context.x) / determinant
        point = path.point(x0, x1, time)
        return point, context.apply_guidance(point, time, path.velocity(x0, x1, time))

    # -- further random numbers -------------------------------------------------------------------------------------

    def uniform(self, purpose: str) -> Tensor:
        """A uniform number in (0, 1) for each sample, [n, 1, ...], ready to broadcast.

        It depends on the seed, the sample and `purpose` alone; two purposes give independent numbers.
        """
        return self._context.uniform(purpose).view_as(self.gap)

    def other_data(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw `count` other data points for each sample, independently.

        Returns:
            x_0 [count, n, *shape] in float64, and whether each has the condition of the sample, [count, n].
        """
        return self._context.other_data(count)

    def other_samples(self, count: int) -> tuple[Tensor, Tensor, Tensor, Condition]:
        """Draw `count` other samples for each sample, independently.

        Returns:
            x_t [n * count, *shape], r and t [n * count], and the condition; those of sample 0 come first.
        """
        return self._context.other_samples(count)

    def batch_features(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden features of the samples that share a batch with those of the fields, without gradient.

        Batches are fixed, whatever is measured at once: sample i is number i mod `size` of batch i // `size`. Members
        other than the sample itself are drawn anew for the second draw of v_c.

        Returns:
            Features [batches, size, F] (`DifferentiableNetwork.features`), and the batch and the number in it of each
            sample, both int64 [n].
        """
        return self._context.batch_features(size)

    # -- the same samples with other velocities ---------------------------------------------------------------------

    def with_proxy(self, network: str | None) -> Fields:
        """The fields with the velocity of another network as vhat, at the cost of one forward pass and one derivative.

        `network` is "ema", "head", "self" or "teacher". "run" and None stand for the run's own proxy, which also
        replaces "ema" if the run has no EMA weights.
        """
        if self.context is None or network in (None, "run", self.context.proxy):
            return self
        if network == "ema" and network not in self.context.networks:
            return self
        assert network is not None
        cache = self.context.proxy_cache
        if network not in cache:
            change = self.instantaneous_velocity(network, self.x, self.t) - self.vhat
            cache[network] = change, self.context.jvp_x(change[None])[0]
        change, jvp_change = cache[network]
        posterior = self.posterior
        if posterior is not None:
            bias, jvp_bias = posterior.bias + change, posterior.jvp_bias + jvp_change
            posterior = replace(posterior, bias=bias, jvp_bias=jvp_bias)
        return replace(self, vhat=self.vhat + change, jvp_shift=self.jvp_shift + jvp_change, posterior=posterior)

    def with_v_c(self, v_c: Tensor) -> Fields:
        """The fields with another v_c [n, *shape], at the cost of one derivative; without posterior and Jacobian."""
        return self._replace_v_c(v_c, self._context.jvp_x((self.v_c - v_c)[None])[0])

    def without_guidance(self) -> Fields:
        """The fields with the sample's own v_c in place of v_g, at the cost of one derivative."""
        context = self._context
        plain = self.with_v_c(context.remove_guidance(self.v_c))
        return replace(plain, context=context.without_guidance())

    def mean_field(self) -> Fields:
        """The fields with v_c replaced by its conditional mean v.

        A residual that is affine in v_c becomes its own conditional mean (docs/theory.md#noise-and-bias).

        Raises:
            InputError: The marginal velocity is not known.
        """
        if self.posterior is None:
            raise InputError("The conditional mean needs data whose marginal velocity is known.")
        bias, jvp_bias = self.posterior.bias, self.posterior.jvp_bias
        return self._replace_v_c(self.vhat - bias, jvp_bias - self.jvp_shift)

    def second_draw(self) -> Fields:
        """The fields at the same x_t with an independent draw of v_c.

        The difference of the two residuals is conditional noise alone (docs/theory.md#conditional).

        Raises:
            InputError: The marginal velocity is not known, or no second draw was asked for.
        """
        posterior = self.posterior
        if posterior is None or posterior.delta is None or posterior.jvp_delta is None:
            raise InputError("A second posterior draw needs data whose marginal velocity is known.")
        second = self._replace_v_c(self.v_c - posterior.delta, posterior.jvp_delta)
        return second if self.context is None else replace(second, context=replace(self.context, is_second_draw=True))

    def select(self, samples: slice) -> Fields:
        """The fields of some of the samples, without the Jacobian."""
        names = ("u", "v_c", "vhat", "gap", "jvp_v_c", "jvp_shift")
        context = None if self.context is None else self.context.select(samples)
        posterior = None if self.posterior is None else self.posterior.select(samples)
        weight = None if self.weight is None else self.weight[samples]
        selected = {name: getattr(self, name)[samples] for name in names}
        return Fields(**selected, posterior=posterior, context=context, weight=weight)

    @property
    def _context(self) -> EvaluationContext:
        assert self.context is not None, "these fields were computed without networks"
        return self.context

    def _replace_v_c(self, v_c: Tensor, jvp_change: Tensor) -> Fields:
        """The fields with v_c replaced; `jvp_change` = du/dx (old v_c - new v_c)."""
        return Fields(
            self.u,
            v_c,
            self.vhat,
            self.gap,
            jvp_v_c=self.jvp_v_c - jvp_change,
            jvp_shift=self.jvp_shift + jvp_change,
            context=self.context,
            weight=self.weight,
        )


@dataclass(frozen=True)
class Velocities:
    """The velocities at x_t that fields are computed from, all [n, *shape].

    `marginal` and `variance` come together.

    Attributes:
        conditional: v_c of the sample's own pair, or v_g under guidance.
        proxy: vhat.
        marginal: v = E[v_c given x_t], if the posterior is known.
        variance: Diagonal of Sigma = Cov(v_c given x_t), if the posterior is known.
        second_draw: An independent draw of v_c given x_t.
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

    One call of `differentiate` serves all directions. If the full Jacobian is wanted and d is small, its tangents are
    the coordinate basis, and every other derivative follows by multiplication.

    Args:
        inputs: Where the network is evaluated.
        velocities: v_c, vhat and, if the posterior is known, v.
        differentiate: Derivatives of u at `inputs`.
        jacobian: Whether to measure A: on the coordinate basis for d <= FULL_JACOBIAN_DIM, else along `probes`.
        probes: Random signs [m, n, *shape].

    Returns:
        The fields, without context and weight.

    Raises:
        InputError: The shape of u is not that of x.
    """
    x, r, t, _ = inputs
    n, d = len(x), x[0].numel()
    gap = (t - r).view(-1, *[1] * (x.ndim - 1))
    directions = _directions(velocities)
    if jacobian and d <= FULL_JACOBIAN_DIM:
        basis = coordinate_basis(x)
        dx = torch.cat([basis, torch.zeros_like(x)[None]])
        dt = torch.zeros(d + 1, n, dtype=x.dtype, device=x.device)
        dt[-1] = 1
        u, derivatives = differentiate(dx, dt)
        columns = derivatives[:d].flatten(2)  # [d, n, d]: entry j is du/dx_j
        jvps = [torch.einsum("jni,nj->ni", columns, dx.flatten(1)).view(x.shape) for dx in directions]
        jvps[0] = jvps[0] + derivatives[-1]
        measured = Jacobian(basis.flatten(2), columns * gap.flatten(1), is_full=True)
    else:
        probes = probes if jacobian and probes is not None else x.new_empty(0, *x.shape)
        dx = torch.cat([torch.stack(directions), probes])
        dt = torch.zeros(len(dx), n, dtype=x.dtype, device=x.device)
        dt[0] = 1
        u, derivatives = differentiate(dx, dt)
        jvps = list(derivatives[: len(directions)])
        measured = Jacobian(probes.flatten(2), (derivatives[len(directions) :] * gap).flatten(2), is_full=False)
    if u.shape != x.shape:
        raise InputError(f"The model must return u of shape {tuple(x.shape)}, but it returned shape {tuple(u.shape)}.")
    posterior = None
    if velocities.marginal is not None and velocities.variance is not None:
        delta = (directions[3], jvps[3]) if velocities.second_draw is not None else (None, None)
        posterior = PosteriorFields(directions[2], jvps[2], velocities.variance, *delta)
    jacobian_products = measured if jacobian else None
    return Fields(u, velocities.conditional, velocities.proxy, gap, jvps[0], jvps[1], posterior, jacobian_products)


def _directions(velocities: Velocities) -> list[Tensor]:
    """Tangents of x: v_c, vhat - v_c and, if they are known, b and the difference of two draws of v_c."""
    v_c, vhat = velocities.conditional, velocities.proxy
    directions = [v_c, vhat - v_c]
    if velocities.marginal is not None:
        directions.append(vhat - velocities.marginal)
    if velocities.second_draw is not None:
        directions.append(v_c - velocities.second_draw)
    return directions
