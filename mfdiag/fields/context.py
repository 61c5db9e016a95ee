"""Where a batch was evaluated, and what estimators can evaluate elsewhere: networks, other times, other samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mfdiag.fields.guided_velocity import GuidedVelocity, condition_for, with_guidance
from mfdiag.fields.hidden_features import hidden_features
from mfdiag.fields.inputs import Differentiate, Inputs, VelocityFunction
from mfdiag.flow.conditions import Condition, labels_of, move_condition
from mfdiag.flow.data.datasets import FiniteData, MomentsData
from mfdiag.flow.draw import Draws

__all__ = ["EvaluationContext"]

_OTHER_SAMPLES = 2**40  # numbers of other samples start here, far above those of any run
_FEATURES_AT_ONCE = 16  # samples without gradient: cheap where a chunk of a few with gradient fits
_CACHED_BATCHES = 4  # consecutive chunks share a batch, once for each draw of v_c


@dataclass(frozen=True)
class EvaluationContext:
    """The point (x_t, r, t, condition) of each sample, and what can be evaluated from there without gradients.

    Estimators use it through the methods of `Fields`, whose times broadcast against x. Here times are [n].

    Attributes:
        x: x_t, [n, *shape].
        r: Start times [n].
        t: End times [n].
        condition: Labels [n], [n, 4] if the network takes its guidance as an input; `Conditions`; or None.
        model: The measured network u(x, r, t, condition).
        networks: The networks that the run has, by name: "ema" and "teacher" map (x, r, t, condition) to u, "head" maps
            them to the velocity head's v.
        proxy: Name of the network that gives the run's vhat.
        jvp_x: Tangents dx [m, n, *shape] -> du/dx dx [m, n, *shape] at the point.
        differentiate: u and its derivatives at any inputs.
        draws: Data, times, source and coupling that the samples are drawn from.
        index: Numbers [n] of the samples.
        is_second_draw: Whether the fields hold the second draw of v_c, for which all other random numbers are new too.
        guided: The guidance, which makes v_g from v_c; None without guidance.
        guidance_affine: Factor [n, 1, ...] and shift [n, *shape] of the guidance at the point; None without guidance.
        proxy_cache: For each network asked for as a proxy, its velocity minus vhat, and du/dx times that difference.
        feature_cache: Features of the last few batches of samples; one for all chunks of a run.
    """

    x: Tensor
    r: Tensor
    t: Tensor
    condition: Condition
    model: VelocityFunction
    networks: Mapping[str, VelocityFunction]
    proxy: str
    jvp_x: Callable[[Tensor], Tensor]
    differentiate: Differentiate
    draws: Draws
    index: np.ndarray
    is_second_draw: bool = False
    guided: GuidedVelocity | None = None
    guidance_affine: tuple[Tensor, Tensor] | None = None
    proxy_cache: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    feature_cache: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def average_velocity(self, x: Tensor, r: Tensor, t: Tensor, network: str = "self") -> Tensor:
        """A network of the run at any point and times.

        Args:
            x: Points [n, *shape].
            r: Start times [n].
            t: End times [n].
            network: "self" for the measured network, or "ema".

        Returns:
            u(x, r, t) with the samples' condition, [n, *shape].
        """
        function = self.model if network == "self" else self.networks[network]
        with torch.no_grad():
            return function(x, r, t, condition_for(function, self.condition))

    def instantaneous_velocity(self, network: str, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at one time of a network of the run.

        Args:
            network: "self" for the measured network, or "ema", "head" or "teacher".
            x: Points [n, *shape].
            t: Times [n].

        Returns:
            u(x, t, t), or v(x, t) of the velocity head, [n, *shape].
        """
        with torch.no_grad():
            if network == "head":
                condition = self.condition
                if self.guided is not None and self.guided.network_takes_guidance:
                    condition = self.guided.own_condition(t)
                return self.networks[network](x, self.r, t, condition)
            function = self.model if network == "self" else self.networks[network]
            return function(x, t, t, condition_for(function, self.condition))

    def derivatives(self, r: Tensor, dx: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of the measured network at (x_t, r, t), for any r.

        Args:
            r: Start times [n].
            dx: Tangents of x, [m, n, *shape].
            dt: Tangents of t, [m, n].

        Returns:
            u [n, *shape] and its derivatives [m, n, *shape].
        """
        return self.differentiate(self.x, r, self.t, self.condition, dx, dt)

    def remove_guidance(self, velocity: Tensor) -> Tensor:
        """The samples' own v_c [n, *shape] from `velocity` [n, *shape], which is v_g at x_t under guidance."""
        if self.guidance_affine is None:
            return velocity
        factor, shift = self.guidance_affine
        return (velocity - shift) / factor

    def apply_guidance(self, x: Tensor, t: Tensor, v_c: Tensor) -> Tensor:
        """The velocity that the objective uses at any point.

        Args:
            x: Points [n, *shape].
            t: Times [n].
            v_c: Conditional velocities [n, *shape] at these points.

        Returns:
            v_g [n, *shape] under guidance, else `v_c`.
        """
        if self.guided is None:
            return v_c
        factor, shift = self.guided.affine_at(x, t)
        return factor * v_c + shift

    def uniform(self, purpose: str) -> Tensor:
        """A uniform number [n] in (0, 1) for each sample; it depends on the seed, the sample and `purpose` alone."""
        return self._cast(self.draws.uniforms(self._stream(purpose), self.index, 1)[:, 0])

    def other_data(self, count: int) -> tuple[Tensor, Tensor]:
        """Other data points x_0 for each sample, drawn independently: see `Fields.other_data`."""
        data = self.draws.data
        uniforms = self.draws.uniforms(self._stream("further data"), self.index, count * data.width)
        parts = np.split(uniforms, count, axis=1)
        drawn = [data.sample(part) for part in parts]
        points = torch.as_tensor(np.stack([x0 for x0, _ in drawn]), dtype=torch.float64, device=self.x.device)
        return points, torch.stack([self._matches(u, labels) for u, (_, labels) in zip(parts, drawn, strict=True)])

    def _matches(self, u: np.ndarray, labels: np.ndarray | None) -> Tensor:
        """Which points [n] drawn by `u` could have the sample's condition; all of them under the null condition."""
        data, draws = self.draws.data, self.draws
        rows, own_rows = self.index, self.index
        if draws.conditions:
            assert isinstance(data, FiniteData | MomentsData), "only stored samples have conditions"
            rows, own_rows = data.rows(u), draws.marginals.rows_of(self.index)
        own = labels_of(self.condition if self.guided is None else self.guided.condition)
        drawn = draws.condition_numbers(rows, labels)
        numbers = draws.condition_numbers(own_rows, own)
        if numbers is None or drawn is None:
            return torch.ones(len(self.x), dtype=torch.bool, device=self.x.device)
        same = drawn.to(self.x.device) == numbers.to(self.x.device)
        return same if self.guided is None else same | self.guided.dropped

    def other_samples(self, count: int) -> Inputs:
        """Other samples for each sample, drawn independently: see `Fields.other_samples`."""
        numbers = self.index[:, None] * count + np.arange(count)
        return self._inputs_of((numbers + _OTHER_SAMPLES * (1 + self.is_second_draw)).ravel())

    def batch_features(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden features of the samples that share a batch with these: see `Fields.batch_features`."""
        batches, batch = np.unique(self.index // size, return_inverse=True)
        first = self.index.dtype.type(_OTHER_SAMPLES * self.is_second_draw)
        features = torch.stack([self._features_of_batch(int(first + b * size), size) for b in batches])
        slots = torch.as_tensor(self.index % size, device=self.x.device)
        return features, torch.as_tensor(batch, device=self.x.device), slots

    def _features_of_batch(self, first: int, size: int) -> Tensor:
        """Features [size, F] of the samples from number `first` on; the last few batches are kept."""
        key = (first, size)
        if key not in self.feature_cache:
            parts, numbers, step = [], np.arange(first, first + size), max(len(self.x), _FEATURES_AT_ONCE)
            with torch.no_grad():
                for start in range(0, size, step):
                    inputs = self._inputs_of(numbers[start : start + step])
                    parts.append(hidden_features(self.model, partial(self.model, *inputs))[1])
            while len(self.feature_cache) >= _CACHED_BATCHES:
                self.feature_cache.pop(next(iter(self.feature_cache)))
            self.feature_cache[key] = torch.cat(parts)
        return self.feature_cache[key]

    def _inputs_of(self, numbers: np.ndarray) -> Inputs:
        """x_t, r, t and condition, as the measured network takes them, of any samples."""
        batch = self.draws.batch(numbers)
        condition, own = move_condition(batch.condition, self.x), labels_of(self.condition)
        if own is not None and own.ndim == 2 and batch.scale is not None:
            condition = with_guidance(condition, batch.scale, self.x)
        return self._cast(batch.x_t), self._cast(batch.r), self._cast(batch.t), condition

    def select(self, samples: slice) -> EvaluationContext:
        """The context of some of the samples.

        `jvp_x` is kept for all samples, so the result supports evaluations but not `Fields.with_proxy` or
        `Fields.with_v_c`.
        """
        affine = self.guidance_affine
        return replace(
            self,
            x=self.x[samples],
            r=self.r[samples],
            t=self.t[samples],
            condition=None if self.condition is None else self.condition[samples],
            index=self.index[samples],
            guided=None if self.guided is None else self.guided.select(samples),
            guidance_affine=None if affine is None else (affine[0][samples], affine[1][samples]),
            proxy_cache={},
        )

    def without_guidance(self) -> EvaluationContext:
        """The context with v_c in place of v_g."""
        return replace(self, guided=None, guidance_affine=None)

    def _stream(self, purpose: str) -> str:
        return f"{purpose}, second draw" if self.is_second_draw else purpose

    def _cast(self, values: np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(values).to(self.x)
