"""What forward passes alone say of a network: errors of its velocity and intervals, and what its target was.

A network that was trained on u_tgt = v - (t-r) D u satisfies u - w + (t-r) D u = 0 for its own D, w = u(x_t, t, t).
MeanFlow's D is du/dx w + du/dt. A training loop with another one leaves a network that satisfies another identity, and
so tells which (docs/doctor.md#targets). This needs no posterior over the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mfdiag.derivatives.finite_difference import quotient_along
from mfdiag.diagnosis.label_probe import probe_labels
from mfdiag.diagnosis.measured import Measured, bins, blocks, exactly, mean_of, one_minus, ratio, squares
from mfdiag.errors import NETWORK_ERRORS
from mfdiag.flow.conditions import Condition, map_condition, move_condition
from mfdiag.flow.draw import Draws
from mfdiag.gradients.intervals import jackknife, skewed_jackknife
from mfdiag.gradients.moments import scalar_replicates
from mfdiag.measures.conventions.observations import Observations, observe
from mfdiag.models.precision import measured_copy

__all__ = ["TARGETS", "probe_field"]

TARGETS: Mapping[str, tuple[float, float, float]] = {
    "meanflow": (1, 1, 0),
    "tangents_swapped": (1, 0, 1),
    "velocity_left_out": (0, 1, 0),
    "time_left_out": (1, 0, 0),
    "derivative_left_out": (0, 0, 0),
    "sign_reversed": (-1, -1, 0),
    "velocity_reversed": (-1, 1, 0),
    "both_times_move": (1, 1, 1),
}
"""Derivatives D = a du/dx w + b du/dt + c du/dr by name: (a, b, c)."""

_STEP = 2.0**-14  # of difference quotients in float64: small enough for times multiplied by 1000
_COARSE_STEP = 2.0**-8  # where a network supports no float64


@dataclass(frozen=True)
class _Network:
    """A network in the precision of the measurement, and in float64 where it supports that."""

    own: nn.Module
    dtype: torch.dtype
    precise: nn.Module
    precise_dtype: torch.dtype

    def __call__(self, x: Tensor, r: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """u, in float64."""
        return _call(self.own, self.dtype, x, r, t, condition)

    def derivative(
        self, x: Tensor, r: Tensor, t: Tensor, condition: Condition, tangent: tuple[Tensor | None, int, int]
    ) -> Tensor:
        """The derivative along (dx, dr, dt); dx None is zero."""
        dx, dr, dt = tangent
        step = _STEP if self.precise_dtype is torch.float64 else _COARSE_STEP
        return quotient_along(
            lambda x, r, t: _call(self.precise, self.precise_dtype, x, r, t, condition),
            (x, r, t),
            (torch.zeros_like(x) if dx is None else dx, torch.full_like(r, dr), torch.full_like(t, dt)),
            step,
        )

    def exchanged(self) -> _Network:
        """The network with r and t in the other order."""
        return replace(self, own=_Exchanged(self.own), precise=_Exchanged(self.precise))


class _Exchanged(nn.Module):
    """A network whose times are passed in the other order."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, r: Tensor, t: Tensor, condition: Condition) -> Tensor:
        output: Tensor = self.network(x, t, r, condition)
        return output


def _call(network: nn.Module, dtype: torch.dtype, x: Tensor, r: Tensor, t: Tensor, condition: Condition) -> Tensor:
    cast = x.to(dtype), r.to(dtype), t.to(dtype)
    with torch.no_grad():
        return network(*cast, move_condition(condition, cast[0])).detach().double()


def probe_field(
    draws: Draws, networks: Mapping[str, nn.Module], samples: int, cost: float, dtype: torch.dtype
) -> Iterator[Measured]:
    """Measure networks by forward passes.

    Args:
        draws: The distribution of the samples.
        networks: u(x, r, t, condition) by set of weights, the measured one first.
        samples: Number of samples.
        cost: Upper limit of samples x data points x coordinates for the posterior.
        dtype: Precision of the networks.

    Yields:
        Measurements of table `doctor`.
    """
    observations = observe(draws, samples, cost=cost)
    errors: dict[str, np.ndarray] = {}
    for weights, module in networks.items():
        network, keys = _prepared(module, observations, dtype), {"weights": weights}
        x, t, v, _ = observations.points(1.0, 0.0)
        u = network(x, t, t, observations.condition)
        errors[weights] = squares(u - v)
        yield from _velocity(u, observations, keys)
        if observations.exact:
            yield from _coefficients(network, u, observations, keys)
        yield from _identity(network, observations, keys)
        yield from probe_labels(network, draws, samples, keys, exact=observations.exact)
    if {"raw", "ema"} <= errors.keys() and observations.exact:
        gain = one_minus(ratio(errors["ema"], errors["raw"]))
        yield Measured("average_gain", gain, keys={"weights": "ema"})
    data = observations.z.flatten(1)
    distance = (data - data.mean(0)).square().sum(1).numpy()
    largest = distance.max() / max(distance.mean(), 1e-300)
    yield Measured("data_outlier", exactly(largest, len(distance)))


def _prepared(module: nn.Module, observations: Observations, dtype: torch.dtype) -> _Network:
    own, precise = measured_copy(module, "cpu", dtype), measured_copy(module, "cpu", torch.float64)
    point = observations.points(1.0, 0.0, slice(2))
    condition = map_condition(observations.condition, lambda values: values[:2])
    try:
        _call(precise, torch.float64, point.x, point.t, point.t, condition)
    except NETWORK_ERRORS:
        return _Network(own, dtype, own, dtype)
    return _Network(own, dtype, precise, torch.float64)


def _velocity(u: Tensor, observations: Observations, keys: Mapping[str, Any]) -> Iterator[Measured]:
    """Velocity error, over all times and by time, skill, and what is learned of a linear map."""
    t, v = observations.points(1.0, 0.0)[1:3]
    if observations.exact:
        square, speed = squares(u - v), squares(v)
        yield Measured("velocity_error", ratio(square, speed), keys=keys)
        for box, inside in bins(t.numpy()):
            yield Measured("velocity_error", ratio(square[inside], speed[inside]), box, keys)
    # against v_c, whatever is known of v: the posterior over few data in many dimensions memorizes them, and no network
    # that generalizes comes near it
    plain = observations.paired.points(1.0, 0.0)
    own, zero = (_bounded(plain.weight * torch.as_tensor(squares(w - plain.v))) for w in (u, torch.zeros_like(u)))
    linear = _bounded(observations.linear_error())
    yield Measured("skill", one_minus(ratio(own, linear)), keys=keys)
    yield Measured("learned_share", ratio(zero - own, zero - linear, nonnegative=False), keys=keys)


def _identity(network: _Network, observations: Observations, keys: Mapping[str, Any]) -> Iterator[Measured]:
    """Defect of intervals, and of the identity that each target implies."""
    if observations.pairs is None:
        return
    x, r, s, t, _ = observations.intervals(1.0, 0.0)
    condition, column = observations.condition, (-1, *[1] * (x.ndim - 1))
    u, w, first = (network(x, start, t, condition) for start in (r, t, s))
    gap = (t - r).view(column)
    step = (t - s).view(column) * first
    both = step + (s - r).view(column) * network(x - step, r, s, condition)
    yield Measured("interval_defect", ratio(squares(gap * u - both), squares(both)), keys=keys)
    parts = [
        gap * network.derivative(x, r, t, condition, tangent) for tangent in ((w, 0, 0), (None, 0, 1), (None, 1, 0))
    ]
    speed = squares(w)
    yield Measured("interval_effect", ratio(squares(u - w), speed), keys=keys)
    size = squares(parts[0] + parts[1])
    yield Measured("derivative_size", ratio(size, speed), keys=keys)
    for box, inside in bins(t.numpy()):
        yield Measured("derivative_size", ratio(size[inside], speed[inside]), box, keys)
    defects = {
        name: squares(u - w + sum(factor * part for factor, part in zip(factors, parts, strict=True)))
        for name, factors in TARGETS.items()
    }
    yield from _coefficients_of_target(w - u, parts[:2], keys)
    other = network.exchanged()
    swapped = other(x, r, t, condition) - w + gap * other.derivative(x, r, t, condition, (w, 0, 1))
    yield Measured("swapped_defect", ratio(squares(swapped), speed), keys=keys)
    for name, defect in defects.items():
        yield Measured("target_defect", ratio(defect, speed), keys={**keys, "target": name})
        if name != "meanflow":
            own = defects["meanflow"]
            yield Measured("target_defect_ratio", ratio(defect, own), keys={**keys, "target": name})
            preference = (own - defect) / np.maximum(own + defect, 1e-300)
            yield Measured("target_preference", mean_of(preference), keys={**keys, "target": name})
    probe = torch.as_tensor(np.random.default_rng(0).standard_normal(tuple(x.shape)))
    shrunk = gap * network.derivative(x, r, t, condition, (probe, 0, 0)) - probe
    yield Measured("jacobian_size", ratio(squares(shrunk), squares(probe)), keys=keys)


def _coefficients_of_target(change: Tensor, parts: Sequence[Tensor], keys: Mapping[str, Any]) -> Iterator[Measured]:
    """Least squares of u(x_t, t, t) - u(x_t, r, t) = (t-r) (a du/dx w + b du/dt): both 1 for MeanFlow's target.

    Without a stop-gradient the gradient of the target pushes b below 0 (docs/theory.md#targets).
    """
    gram, count = _gram([*parts, change])
    values, _ = _fit(gram)
    for name, coefficient in zip(("position", "time"), values, strict=True):
        yield Measured("target_coefficient", jackknife(coefficient, count), keys={**keys, "target": name})


def _coefficients(
    network: _Network, u: Tensor, observations: Observations, keys: Mapping[str, Any]
) -> Iterator[Measured]:
    """Least squares of u = a alpha' E[x_0 given x_t] + b sigma' E[x_1 given x_t], and of u - v = c (du/dx v + du/dt).

    a = b = 1 and c = 0 for the velocity.
    """
    x, t, v, _ = observations.points(1.0, 0.0)
    column = (-1, *[1] * (x.ndim - 1))
    alpha, sigma = (value.view(column) for value in (observations.path.alpha(t), observations.path.sigma(t)))
    d_alpha, d_sigma = (value.view(column) for value in observations.path.rates(t))
    mean = observations.mean
    along = network.derivative(x, t, t, observations.condition, (v, 0, 1))
    gram, count = _gram([d_alpha * mean, d_sigma * (x - alpha * mean) / sigma, u])
    (data, noise), left = _fit(gram)
    yield Measured("data_coefficient", jackknife(data, count), keys=keys)
    yield Measured("noise_coefficient", jackknife(noise, count), keys=keys)
    yield Measured("unexplained_output", skewed_jackknife(left, count, nonnegative=True), keys=keys)
    gram, count = _gram([along, u - v])
    (derivative,), left = _fit(gram)
    yield Measured("derivative_coefficient", jackknife(derivative, count), keys=keys)
    share = one_minus(skewed_jackknife(left, count, nonnegative=True))
    yield Measured("derivative_share", share, keys=keys)


def _gram(parts: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Mean inner products [R, parts, parts] of vectors [n, *shape] by jackknife replicate, and its blocks."""
    stacked = torch.stack(list(parts)).flatten(2)
    products = torch.einsum("ind,jnd->nij", stacked, stacked).numpy().reshape(-1, len(parts) ** 2)
    gram, count = scalar_replicates(products, *blocks(len(products)))
    return gram.reshape(-1, len(parts), len(parts)), count


def _fit(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of the last part on the others: coefficients [parts, R] and the fraction left [R], by replicate."""
    inner, cross, square = gram[:, :-1, :-1], gram[:, :-1, -1:], gram[:, -1, -1]
    coefficients = np.linalg.pinv(inner) @ cross
    explained = (np.swapaxes(cross, 1, 2) @ coefficients)[:, 0, 0]
    return coefficients[:, :, 0].T, 1 - explained / np.maximum(square, 1e-300)


def _bounded(q: Tensor) -> np.ndarray:
    return (q / (1 + q)).nan_to_num(1.0).numpy()
