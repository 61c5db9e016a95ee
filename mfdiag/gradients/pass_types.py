"""What a pass over the samples takes and returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mfdiag.derivatives.choice import parse_derivative
from mfdiag.errors import InputError, did_you_mean
from mfdiag.fields.builder import FieldNeeds, Proxy
from mfdiag.fields.differentiable_network import Loss
from mfdiag.fields.fields import Fields
from mfdiag.gradients.accumulate import Accumulator
from mfdiag.gradients.cells import Cells
from mfdiag.models.precision import measured_copy

__all__ = ["PassResult", "PassSettings", "Plan", "SupportNetworks"]

_MOST_BINS = 100  # of one time; more leave too few samples in each

EngineKind = Literal["auto", "fast", "reference"]


class Plan(Protocol):
    """What u is regressed on: `groups` sets of `size` cotangents each, and further numbers per sample."""

    @property
    def groups(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def needs(self) -> FieldNeeds: ...

    @property
    def losses(self) -> Sequence[Loss]:
        """Losses whose gradients follow the cotangents' in the same group; only a plan of one group has any."""
        ...

    def cotangents(self, fields: Fields) -> Tensor:
        """[C, n, *shape] with C = groups * size - losses; a sample's gradient is (du/dtheta)^T times a cotangent."""
        ...

    def outputs(self, fields: Fields) -> Tensor | None:
        """Residuals [C, n, *shape] whose own moments (output space) are measured; None for no such moments."""
        ...

    def scalars(self, fields: Fields) -> dict[str, Tensor]:
        """Numbers [n] to return for each sample, by name."""
        ...


@dataclass(frozen=True)
class PassSettings:
    """How a pass is run. Only samples, bins and dtype change its numbers by more than rounding.

    Attributes:
        samples: N.
        bins: Bins of r and of t; None for no cells.
        chunk: Samples at once; None chooses by memory.
        engine: auto, fast or reference.
        dtype: Precision of networks and samples; moments are float64.
        device: Where the networks run.
        derivative: As `parse_derivative` takes it.

    Raises:
        InputError: A value is out of range.
    """

    samples: int = 4096
    bins: tuple[int, int] | None = None
    chunk: int | None = None
    engine: EngineKind = "auto"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    derivative: str = "auto"

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise InputError(f"--samples must be at least 2, got {self.samples}.")
        if self.chunk is not None and self.chunk < 1:
            raise InputError(f"--chunk must be at least 1, got {self.chunk}.")
        if self.bins is not None and not all(1 <= count <= _MOST_BINS for count in self.bins):
            raise InputError(f"--bins takes two whole numbers from 1 to {_MOST_BINS}, got {self.bins}.")
        if self.engine not in get_args(EngineKind):
            raise did_you_mean("engine", self.engine, get_args(EngineKind))
        if self.dtype not in (torch.float32, torch.float64):
            raise InputError(f"--dtype must be float32 or float64, got {self.dtype}.")
        parse_derivative(self.derivative)

    def cast(self, values: Tensor) -> Tensor:
        """`values` on the device and in the precision of the pass."""
        return values.to(self.device, self.dtype)

    def cast_network(self, network: nn.Module) -> nn.Module:
        """A copy of `network` on the device and in the precision of the pass, in eval mode and without gradients."""
        return measured_copy(network, self.device, self.dtype)


@dataclass(frozen=True)
class PassResult:
    """What a pass measures: moments by cell and layer, and numbers by sample.

    Attributes:
        cells: The samples' cells and blocks.
        gradient: Moments of the gradients.
        output: Moments of the plan's `outputs`; None if it has none.
        scalars: The plan's `scalars`, each [N].
        r: Start times, [N].
        t: End times, [N].
        labels: Labels, [N], or None.
        stratified: Whether the sampler gives every cell the same number of samples, so that sums over cells mean
            nothing.
        derivative: How the network was differentiated, as in the tables.
    """

    cells: Cells
    gradient: Accumulator
    output: Accumulator | None
    scalars: dict[str, np.ndarray]
    r: np.ndarray
    t: np.ndarray
    labels: np.ndarray | None
    stratified: bool
    derivative: str = "jvp"

    def reported(self, cell: int) -> bool:
        """Whether the cell's moments are estimates under one distribution of the samples."""
        return not self.stratified or cell in self.cells.leaf


@dataclass(frozen=True)
class SupportNetworks:
    """The networks that a pass evaluates besides the measured one.

    Attributes:
        proxy: Where vhat comes from.
        proxy_module: The network whose u(x_t, t, t) is vhat, for the proxies `ema` and `teacher`.
        by_name: Networks that estimators ask for, "ema" and "teacher".

    Raises:
        InputError: `proxy` is unknown.
    """

    proxy: Proxy = "self"
    proxy_module: nn.Module | None = None
    by_name: Mapping[str, nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.proxy not in get_args(Proxy):
            raise did_you_mean("proxy", self.proxy, get_args(Proxy))
