"""One pass over the samples: fields, cotangents, factors, moments. Every measurement of mfdiag is one such pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mfdiag.errors import InputError, did_you_mean
from mfdiag.estimators._fields import Fields
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import GridTimes
from mfdiag.gradients.accumulate import Accumulator
from mfdiag.gradients.cells import Cells, make_cells
from mfdiag.gradients.derivative import choose_derivative, parse_derivative
from mfdiag.gradients.engine import prepare_engine
from mfdiag.gradients.factors import Dense, Factors
from mfdiag.gradients.general import GeneralEngine, Loss
from mfdiag.gradients.maker import FieldMaker, Needs, Proxy
from mfdiag.gradients.partial import Partial
from mfdiag.gradients.reference import Inputs, part_of
from mfdiag.models.precision import in_precision
from mfdiag.models.wrapper import prefix_of

__all__ = ["Measured", "Needs", "Plan", "Settings", "run_pass"]

_CHECKED = 2  # samples on which a run checks itself before it starts
_TRIED = 4  # samples on which it tries derivatives
_CHUNK_BYTES = 288 << 20
_LARGEST_CHUNK = 1024

Engines = Literal["auto", "fast", "reference"]


class Plan(Protocol):
    """What is regressed on u: `groups` sets of `size` cotangents each, and numbers kept per sample."""

    @property
    def groups(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def needs(self) -> Needs: ...

    @property
    def losses(self) -> Sequence[Loss]:
        """Losses whose per-sample gradients follow the cotangents' in the one group; none where there are several."""
        ...

    def cotangents(self, fields: Fields) -> Tensor:
        """[C, n, *shape] with C = groups * size less the losses; the gradient is (du/dtheta)^T times a cotangent."""
        ...

    def outputs(self, fields: Fields) -> Tensor | None:
        """Residuals [C, n, *shape] whose own moments (output space) are wanted."""
        ...

    def scalars(self, fields: Fields) -> dict[str, Tensor]:
        """Numbers [n] kept for each sample."""
        ...


@dataclass(frozen=True)
class Settings:
    """How a pass is run; none of it changes the numbers beyond rounding, except samples, bins and dtype."""

    samples: int = 4096
    bins: tuple[int, int] | None = None
    chunk: int | None = None  # samples at once; None chooses by memory
    engine: Engines = "auto"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    derivative: str = "auto"  # as `parse_derivative` takes it

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise InputError(f"--samples must be at least 2, got {self.samples}.")
        if self.chunk is not None and self.chunk < 1:
            raise InputError(f"--chunk must be at least 1, got {self.chunk}.")
        if self.bins is not None and not all(1 <= count <= 100 for count in self.bins):
            raise InputError(f"--bins takes two whole numbers from 1 to 100, got {self.bins}.")
        if self.engine not in get_args(Engines):
            raise did_you_mean("engine", self.engine, get_args(Engines))
        parse_derivative(self.derivative)


@dataclass(frozen=True)
class Measured:
    """What a pass leaves: gradient (and output) moments by cell and layer, and arrays over samples."""

    cells: Cells
    gradient: Accumulator
    output: Accumulator | None
    scalars: dict[str, np.ndarray]  # name -> [N]
    r: np.ndarray
    t: np.ndarray
    labels: np.ndarray | None
    stratified: bool  # the sampler fills every cell alike, so only single cells mean anything
    derivative: str = "jvp"  # how the network was differentiated, as the tables say it

    def reported(self, cell: int) -> bool:
        """Whether the cell's moments estimate something of the model."""
        return not self.stratified or cell in self.cells.leaf


def run_pass(
    plan: Plan,
    module: nn.Module,
    draws: Draws,
    settings: Settings,
    *,
    proxy: Proxy = "self",
    proxy_module: nn.Module | None = None,
    networks: Mapping[str, nn.Module] | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
    partial: Partial | None = None,
) -> Measured:
    """Measure `plan` on samples 0..N-1 of `draws`, going on from what an interrupted run left in `partial`.

    `module` is the network whose gradient is measured; `proxy_module` gives vhat = its u(x_t, t, t) for the proxies
    `ema` and `teacher`, `networks` those of estimators that name one. `progress` receives (samples done, N); `say`
    one-line notes.

    Raises InputError where the model is random, mixes samples or returns non-finite numbers, and where the derivative
    that is asked for cannot be had.
    """
    if proxy not in get_args(Proxy):
        raise did_you_mean("proxy", proxy, get_args(Proxy))

    def frozen(network: nn.Module) -> nn.Module:
        moved = in_precision(copy.deepcopy(network).to(settings.device), settings.dtype)
        return moved.eval().requires_grad_(False)

    measured = frozen(module)
    guide = frozen(proxy_module) if proxy_module is not None and proxy != "self" else measured
    others = {name: frozen(network) for name, network in (networks or {}).items()}
    numbers = np.arange(settings.samples)
    r, t = draws.times_of(numbers)
    bins = settings.bins
    if isinstance(draws.times, GridTimes):  # only its own cells are samples of one law
        bins = (draws.times.r_bins, draws.times.t_bins)
    cells = make_cells(r, t, bins)

    def cast(values: Tensor) -> Tensor:
        return values.to(settings.device, settings.dtype)

    maker = FieldMaker(measured, guide, draws, plan.needs, proxy, cast, others)

    say = say or _mute
    # tried where derivatives count, which is not at r = t
    apart = np.flatnonzero(r < t) if (r < t).any() else numbers
    few = draws.batch(apart[:_TRIED])
    more = maker.inputs(few)
    first = part_of(more, slice(_CHECKED))
    if draws.guidance is not None:
        maker.require_null_label(first)
    engine = prepare_engine(measured, first, settings.engine, say)
    dx = cast(few.velocity)
    dx, dt = dx.expand(2, *dx.shape), torch.tensor([[1.0], [0.0]]).to(dx).expand(2, len(dx))
    tried = None if engine.tried is None else (first, engine.tried)
    maker.derivative = derivative = choose_derivative(settings.derivative, measured, more, dx, dt, say, tried)
    general = None
    if plan.losses:
        fields = maker(cells.order[:_CHECKED], engine)[1]
        general = GeneralEngine(measured, engine, plan.losses, fields, say, derivative.along)
    cotangents_at_once = plan.groups * plan.size + 2  # and the activations themselves, forward and backward
    chunk = settings.chunk or _chunk(_CHUNK_BYTES // (engine.bytes_per_sample * cotangents_at_once + 1), cells)
    prefix = prefix_of(measured)
    parameters = {name.removeprefix(prefix): p.numel() for name, p in measured.named_parameters()}
    gathered = _Gathered(cells, parameters, plan)
    kept = partial.load() if partial is not None else None
    if kept is not None:
        gathered.restore(kept)
    order = cells.order

    def take(index: np.ndarray) -> None:  # of its own, so that a chunk is gone before the next one begins
        inputs, fields, opened = maker(index, engine)
        cotangents = fields.weighed(plan.cotangents(fields), axis=1)
        _require_finite(cotangents, fields, inputs, index)
        factors = engine.factors(inputs, cotangents, opened)
        if general is not None:
            factors = general.beside(factors, fields)
        outputs = plan.outputs(fields)
        if outputs is not None:
            outputs = fields.weighed(outputs, axis=1)
        named = ((name.removeprefix(prefix), found) for name, found in factors)
        gathered.add(index, plan.scalars(fields), outputs, named)

    try:
        while (start := gathered.gradient.position) < len(order):
            index = order[start : start + chunk]
            take(index)
            if progress is not None:
                progress(start + len(index), len(order))
            if partial is not None and partial.due():
                partial.save(gathered.state())
    except KeyboardInterrupt:
        if partial is not None and gathered.whole:
            partial.save(gathered.state())
        raise
    if partial is not None:
        partial.clear()
    labels = draws.labels_of(numbers)
    scalars = {name: values.numpy() for name, values in gathered.scalars.items()}
    stratified = draws.times.stratified
    return Measured(cells, gathered.gradient, gathered.output, scalars, r, t, labels, stratified, derivative.name)


def _mute(note: str) -> None:
    """Nobody listens."""


class _Gathered:
    """All that a pass gathers: gradient and output moments and numbers per sample."""

    def __init__(self, cells: Cells, parameters: dict[str, int], plan: Plan) -> None:
        self.cells = cells
        self.gradient = Accumulator(cells, parameters, plan.groups, plan.size)
        self.output: Accumulator | None = None
        self.scalars: dict[str, Tensor] = {}
        self.whole = True  # False in the middle of a chunk

    def add(
        self,
        index: np.ndarray,
        scalars: dict[str, Tensor],
        outputs: Tensor | None,
        factors: Iterable[tuple[str, Factors]],
    ) -> None:
        self.whole = False
        for name, values in scalars.items():
            if name not in self.scalars:
                self.scalars[name] = torch.full((len(self.cells.leaf),), torch.nan, dtype=torch.float64)
            self.scalars[name][torch.as_tensor(index)] = values.double().cpu()
        if outputs is not None:
            self._output(outputs[0, 0].numel(), len(outputs)).add(len(index), [("output", Dense(outputs.flatten(2)))])
        self.gradient.add(len(index), factors)
        self.whole = True

    def _output(self, dim: int, size: int) -> Accumulator:
        if self.output is None:
            self.output = Accumulator(self.cells, {"output": dim}, 1, size)
        return self.output

    def state(self) -> dict[str, Any]:
        output = None
        if self.output is not None:
            output = (self.output.parameters["output"], self.output.size, self.output.state())
        return {"gradient": self.gradient.state(), "output": output, "scalars": self.scalars}

    def restore(self, state: dict[str, Any]) -> None:
        self.gradient.restore(state["gradient"])
        self.scalars = state["scalars"]
        if state["output"] is not None:
            dim, size, kept = state["output"]
            self._output(dim, size).restore(kept)


def _chunk(fitting: int, cells: Cells) -> int:
    """Samples at once: what fits, in chunks of one size, in whole jackknife blocks where these are smaller."""
    n = len(cells.leaf)
    block = max(1, n // cells.blocks)
    chunks = -(-n // int(np.clip(fitting, 1, _LARGEST_CHUNK)))
    return -(-n // (chunks * block)) * block if n > chunks * block else -(-n // chunks)


def _require_finite(cotangents: Tensor, fields: Fields, inputs: Inputs, index: np.ndarray) -> None:
    """InputError that names the first sample the model breaks on."""
    if cotangents.isfinite().all():
        return
    bad = ~cotangents.transpose(0, 1).flatten(1).isfinite().all(1)
    k = int(bad.nonzero()[0])
    what = "its derivative" if fields.u[k].isfinite().all() else "u"
    raise InputError(
        f"The model returns NaN or infinity in {what} for {int(bad.sum())} of {len(bad)} samples, first at sample "
        f"{int(index[k])} (r={float(inputs[1][k]):.4g}, t={float(inputs[2][k]):.4g}): "
        "check the weights and the time range, or try --dtype float64."
    )
