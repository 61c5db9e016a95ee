"""How well a reading explains a network: velocity error and interval defect (docs/theory.md#conventions).

    D_v = E|u(x_t, t, t) - v|^2 / E|v|^2
    D_s = E|(t-r) u(x_t, r, t) - (t-s) u(x_t, s, t) - (s-r) u(x_s, r, s)|^2
          / E|(t-s) u(x_t, s, t) + (s-r) u(x_s, r, s)|^2

Readings are ranked by a misfit that is comparable across scales of the data. In each part a sample counts at most once:

    misfit = E[q_v / (1 + q_v)] + E[q_s / (1 + q_s)]

q_v is the squared error of the denoised data over that of a linear denoiser, and q_s is the squared defect over
E|(t-r) v_c|^2. A network that is zero has q_s = 0, so q_v decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mfdiag.flow.conditions import map_condition, move_condition
from mfdiag.measures.conventions.budget import Budget
from mfdiag.measures.conventions.observations import Observations
from mfdiag.models.cards.adapter import CardAdapter
from mfdiag.models.cards.readings import Declared, Reading
from mfdiag.models.networks.registry import PREDICTIONS
from mfdiag.models.prediction import PredictionAdapter, as_average_velocity

__all__ = ["Errors", "Scores", "linear_misfit", "posterior_misfit"]

_REMEMBERED = 2**25  # numbers of outputs that are kept for readings with the same call
_SHARED = 2**22  # the same for readings that are scored twice


class Errors(NamedTuple):
    """Squared errors of one reading, sample by sample, float64 [n].

    Attributes:
        velocity: |u - v|^2.
        speed: |v|^2.
        defect: |(t-r) u(x_t, r, t) - (t-s) u(x_t, s, t) - (s-r) u(x_s, r, s)|^2; empty where there are no intervals.
        step: |(t-s) u(x_t, s, t) + (s-r) u(x_s, r, s)|^2; empty where there are no intervals.
    """

    velocity: np.ndarray
    speed: np.ndarray
    defect: np.ndarray
    step: np.ndarray


class _Products(NamedTuple):
    """Inner products of an output with the point and the velocity, and its squared norm, each [n]."""

    x: Tensor
    v: Tensor
    square: Tensor


class _Points(NamedTuple):
    """`VelocityPoints` with the inner products that all readings share."""

    x: Tensor
    t: Tensor
    v: Tensor
    weight: Tensor
    xx: Tensor
    xv: Tensor
    vv: Tensor

    def error(self, point: Tensor, factor: Tensor, output: _Products) -> Tensor:
        """|u - v|^2 [n] of u = point x + factor output, without an array of the size of u."""
        of_point = point**2 * self.xx + 2 * point * (factor * output.x - self.xv)
        of_output = factor**2 * output.square - 2 * factor * output.v
        return (of_point + of_output + self.vv).clamp_min(0)


@dataclass
class Scores:
    """Misfits of the readings of one network on the same observations.

    Attributes:
        declared: The network and its declared convention.
        observations: The samples.
        networks: Networks without adapters, by key of their weights; the declared one at least.
        dtype: Precision of the networks.
        device: Where they run.
        scales: Scales of the data (factor, shift) that share a call of the network. A call with many samples costs a
            small network hardly more than one with few.
        budget: What may be evaluated; calls are counted there.
        tried: Readings that the last race compared.
        screened: By reading, what a part of the intervals says of the order of its times.
    """

    declared: Declared
    observations: Observations
    networks: Mapping[str, nn.Module]
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    scales: tuple[tuple[float, float], ...] = ()
    budget: Budget = field(default_factory=Budget)
    tried: int = 0
    screened: dict[Reading, float] = field(default_factory=dict, repr=False)
    _numbers: dict[tuple[float, float], int] = field(default_factory=dict, repr=False)  # of the scales
    _predictions: tuple[str, ...] = ()
    _losses: dict[object, np.ndarray] = field(default_factory=dict, repr=False)
    _outputs: dict[object, Tensor] = field(default_factory=dict, repr=False)  # of calls with all samples
    _intervals: dict[Reading, np.ndarray] = field(default_factory=dict, repr=False)  # the same
    _silent: dict[object, np.ndarray] = field(default_factory=dict, repr=False)
    _placed: dict[object, _Points] = field(default_factory=dict, repr=False)
    _factors: dict[object, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _adapters: dict[object, CardAdapter] = field(default_factory=dict, repr=False)
    _converters: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._numbers = {scale: number for number, scale in enumerate(self.scales)}
        own = self.declared.reading
        self._predictions = tuple(PREDICTIONS)
        if not own.denoised and own.prediction not in self._predictions:  # with an argument
            self._predictions += (own.prediction,)

    def call(self, rows: slice = slice(None)) -> None:
        """Call the network as declared with some observations, and forget what it returns."""
        points, own = self._points(((1.0, 0.0),), rows), self.declared.reading
        self._output(own, points.x, points.t, points.t, rows)

    def call_of(self, reading: Reading) -> object:
        """What all readings share whose losses come from the same calls: prediction, sign and scale may differ."""
        own = (reading.factor, reading.shift)
        scale = None if own in self._numbers else own
        return (*_call_of(reading), scale, reading.prediction if reading.denoised else "")

    def place(self, reading: Reading) -> int:
        """The row of a reading in `losses` and in `silents`."""
        number = 0 if reading.denoised else self._predictions.index(reading.prediction)
        own = (reading.factor, reading.shift)
        row = 2 * number + (reading.sign == -1)
        return row * len(self.scales) + self._numbers[own] if own in self._numbers else row

    def velocity(self, reading: Reading, rows: slice = slice(None)) -> np.ndarray:
        """q_v / (1 + q_v) of some observations [n]; 1 where the network fails in this reading."""
        return self.losses(reading, rows)[self.place(reading)]

    def losses(self, reading: Reading, rows: slice = slice(None)) -> np.ndarray:
        """The same for all readings that share the calls of one [readings, n]."""
        key = (self.call_of(reading), rows.start, rows.stop)
        if key not in self._losses:
            scales = self._scales_of(reading)
            points = self._points(scales, rows)
            output = self._output_at_equal_times(reading, points.x, points.t, rows, scales)
            point, factor = self._all_coefficients(reading, points.t, (scales[0], rows.start, rows.stop))
            loss = np.ones((len(point) * len(scales), len(points.t) // len(scales)))
            if output is not None:
                products = _Products(_dot(points.x, output), _dot(points.v, output), _dot(output, output))
                loss = _bounded(points.weight * points.error(point, factor, products)).reshape(loss.shape)
            self._losses[key] = loss
        return self._losses[key]

    def _scales_of(self, reading: Reading) -> tuple[tuple[float, float], ...]:
        """The scales of the data in a call for this reading."""
        own = (reading.factor, reading.shift)
        return self.scales if own in self._numbers else (own,)

    def _all_coefficients(self, reading: Reading, t: Tensor, points: object) -> tuple[Tensor, Tensor]:
        """p and q [readings, n] of u = p x + q output, for each prediction and sign."""
        kind = reading.prediction if reading.denoised else ""
        key = (reading.direction, kind, points)
        if key not in self._factors:
            predictions = (reading.prediction,) if reading.denoised else self._predictions
            signed = [replace(reading, prediction=name, sign=sign) for name, sign in product(predictions, (1, -1))]
            parts = zip(*(self._coefficients(one, t) for one in signed), strict=True)
            self._factors[key] = tuple(map(torch.stack, parts))  # type: ignore[assignment]
        return self._factors[key]

    def _output_at_equal_times(
        self, reading: Reading, x: Tensor, t: Tensor, rows: slice, scales: Sequence[tuple[float, float]]
    ) -> Tensor | None:
        """What the network returns at r = t for each scale; those of a call with all samples are not computed again."""
        key = (_call_of(reading), *scales)
        if key in self._outputs:
            return self._outputs[key].unflatten(0, (len(scales), -1))[:, rows].flatten(0, 1)
        output = self._output(reading, x, t, t, rows, len(scales))
        whole = output is not None and len(output) == len(scales) * len(self.observations)
        if output is not None and whole and (len(self._outputs) + 1) * output.numel() <= _SHARED:
            self._outputs[key] = output
        return output

    @property
    def paired(self) -> Scores:
        """The same network on `Observations.paired`, without calling it again where it was called with all samples."""
        if not self.observations.exact:
            return self
        other = Scores(
            self.declared, self.observations.paired, self.networks, self.dtype, self.device, self.scales, self.budget
        )
        other._outputs, other._intervals, other._adapters = self._outputs, self._intervals, self._adapters
        return other

    def silent(self, reading: Reading) -> float:
        """Mean of q_v / (1 + q_v) if the network returned zero: what a reading explains without the network."""
        return float(self.silents(reading)[self.place(reading)])

    def silents(self, reading: Reading) -> np.ndarray:
        """The same for all readings that share the calls of one [readings]."""
        scales = self._scales_of(reading)
        key = (reading.direction, reading.prediction if reading.denoised else "", scales[0])
        if key not in self._silent:
            points = self._points(scales, slice(None))
            point, factor = self._all_coefficients(reading, points.t, (scales[0], None, None))
            zero = torch.zeros_like(points.t)
            loss = _bounded(points.weight * points.error(point, factor, _Products(zero, zero, zero)))
            self._silent[key] = loss.reshape(len(point) * len(scales), -1).mean(1)
        return self._silent[key]

    def interval(self, reading: Reading, rows: slice = slice(None)) -> np.ndarray:
        """q_s / (1 + q_s) of some intervals [n]; 0 where there are no intervals, 1 where the network fails."""
        length = len(range(*rows.indices(len(self.observations))))
        if self.observations.pairs is None:
            return np.zeros(length)
        if reading in self._intervals:
            return self._intervals[reading][rows]
        parts = self._defect(reading, rows)
        if parts is None:
            return np.ones(length)
        defect, _ = parts
        bounded = _bounded(defect / self.observations.intervals(reading.factor, reading.shift, rows).length2)
        if length == len(self.observations):
            self._intervals[reading] = bounded
        return bounded

    def errors(self, reading: Reading) -> Errors | None:
        """The errors that D_v and D_s are made of; None where the network fails in this reading."""
        points = self._points(((reading.factor, reading.shift),), slice(None))
        output = self._output(reading, points.x, points.t, points.t, slice(None))
        parts = None if self.observations.pairs is None else self._defect(reading, slice(None))
        if output is None or (parts is None and self.observations.pairs is not None):
            return None
        u = self._average_velocity(reading, points.x, points.t, output)
        nothing = torch.zeros(0)
        defect, step = parts or (nothing, nothing)
        return Errors(*(part.numpy() for part in (_square(u - points.v), _square(points.v), defect, step)))

    def _points(self, scales: Sequence[tuple[float, float]], rows: slice) -> _Points:
        """The observations as points of the paths from data of these scales, one scale after the other."""
        key = (*scales, rows.start, rows.stop)
        if key not in self._placed:
            if len(self._placed) * self.observations.z[rows].numel() * len(scales) > _REMEMBERED:
                self._placed.clear()
            parts = [self.observations.points(factor, shift, rows) for factor, shift in scales]
            x, t, v, weight = (torch.cat(part) for part in zip(*parts, strict=True))
            self._placed[key] = _Points(x, t, v, weight, _dot(x, x), _dot(x, v), _dot(v, v))
        return self._placed[key]

    def _defect(self, reading: Reading, rows: slice) -> tuple[Tensor, Tensor] | None:
        """Squared defect and squared step of some intervals."""
        x, r, s, t, _ = self.observations.intervals(reading.factor, reading.shift, rows)
        column = (-1, *[1] * (x.ndim - 1))

        def move(point: Tensor, start: Tensor, end: Tensor) -> Tensor | None:
            output = self._output(reading, point, start, end, rows)
            return (
                None
                if output is None
                else (end - start).view(column) * self._average_velocity(reading, point, end, output)
            )

        whole, first = move(x, r, t), move(x, s, t)
        if whole is None or first is None:
            return None
        second = move(x - first, r, s)
        return None if second is None else (_square(whole - first - second), _square(first + second))

    def _output(self, reading: Reading, x: Tensor, r: Tensor, t: Tensor, rows: slice, times: int = 1) -> Tensor | None:
        """What the network returns, float64; None where it fails or returns another shape or no finite numbers."""
        cast = [value.to(self.device, self.dtype) for value in (x, r, t)]
        condition = map_condition(self.observations.condition, lambda values: torch.cat([values[rows]] * times))
        condition = move_condition(condition, cast[0])
        self.budget.take(len(x))
        try:
            with torch.no_grad():
                output = self._adapter(reading)(*cast, condition).detach()  # a network may differentiate itself
        except (Exception, SystemExit):  # whatever a network raises in a convention that is not its own
            return None
        if not isinstance(output, Tensor) or output.shape != x.shape or not output.isfinite().all():
            return None
        return output.double().cpu()

    def _adapter(self, reading: Reading) -> CardAdapter:
        """The network in the reading's call, which returns the bare output."""
        key = (reading.times, *_call_of(reading))
        if key not in self._adapters:
            card = self.declared.card_of(reading)
            prediction = card.output.prediction if reading.denoised else "x"  # the adapter negates u, but not x
            output = card.output.model_copy(update={"prediction": prediction, "sign": 1})
            card = card.model_copy(update={"output": output})
            self._adapters[key] = CardAdapter(self.networks[reading.weights], card)
        return self._adapters[key]

    def _average_velocity(self, reading: Reading, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """u at the points x and times t from what the network returned; as the adapters of the reading's card."""
        point, factor = (value.view(-1, *[1] * (x.ndim - 1)) for value in self._coefficients(reading, t))
        return point * x + factor * output

    def _coefficients(self, reading: Reading, t: Tensor) -> tuple[Tensor, Tensor]:
        """p and q [n] of u = p x + q output at times t [n]."""
        if reading.prediction not in self._converters:
            prediction = self.declared.card_of(reading).prediction
            self._converters[reading.prediction] = as_average_velocity(
                nn.Identity(), prediction, self.observations.path
            )
        converter = self._converters[reading.prediction]
        if not isinstance(converter, PredictionAdapter):
            sign = 1 if (reading.direction == "D1") == (reading.sign == -1) else -1
            return torch.zeros_like(t), sign * torch.ones_like(t)
        point, factor = converter.factors(t)
        return point, reading.sign * factor


def linear_misfit(observations: Observations) -> np.ndarray:
    """q_v / (1 + q_v) of the linear denoiser against v_c [n], to compare with readings of `observations.paired`."""
    return _bounded(observations.linear_error())


def posterior_misfit(observations: Observations) -> np.ndarray:
    """The same of the posterior's mean: 0 where it memorizes the data."""
    target = observations.paired.points(1.0, 0.0)
    return _bounded(target.weight * _square(observations.points(1.0, 0.0).v - target.v))


def _call_of(reading: Reading) -> tuple[object, ...]:
    """What decides the network's output at r = t, where the order of the times does not enter."""
    times = reading.times if "h" in reading.times else ("r", "t")
    return times, reading.direction, reading.time_scale, reading.weights, reading.labels, reading.denoised


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner products [n] of x and y [n, *shape]."""
    return torch.linalg.vecdot(x.flatten(1), y.flatten(1))


def _square(x: Tensor) -> Tensor:
    """Squared norms [n] of x [n, *shape]."""
    return x.flatten(1).square().sum(1)


def _bounded(q: Tensor) -> np.ndarray:
    return (q / (1 + q)).nan_to_num(1.0).detach().numpy()  # a network may switch gradients on
