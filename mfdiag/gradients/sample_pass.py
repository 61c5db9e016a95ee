"""One pass over the samples: fields, cotangents, factors, moments. Every measurement of mfdiag is one such pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mfdiag.derivatives.choice import Derivative, choose_derivative, parse_derivative
from mfdiag.derivatives.forward_graph import ForwardGraph
from mfdiag.errors import InputError, did_you_mean
from mfdiag.fields.builder import FieldBuilder, FieldNeeds, Proxy
from mfdiag.fields.differentiable_network import Loss
from mfdiag.fields.fields import Fields
from mfdiag.fields.inputs import Inputs, select_samples
from mfdiag.flow.draw import Batch, Draws
from mfdiag.flow.times import GridTimes
from mfdiag.gradients.accumulate import Accumulator
from mfdiag.gradients.cells import Cells, make_cells
from mfdiag.gradients.engine import Engine, prepare_engine
from mfdiag.gradients.factors import Dense, Factors
from mfdiag.gradients.loss_engine import LossEngine
from mfdiag.gradients.pass_checkpoint import PassCheckpoint
from mfdiag.models.precision import in_precision
from mfdiag.models.wrapper import prefix_of

__all__ = ["PassResult", "PassSettings", "Plan", "SupportNetworks", "evaluate_batch", "run_pass"]

_ENGINE_SAMPLES = 2  # on which the engine is checked before a pass starts: single gradients are computed for each
_DERIVATIVE_SAMPLES = 4  # on which derivatives are checked
_CHUNK_BYTES = 288 << 20  # activations of a chunk: larger was no faster on a DiT of 4M parameters
_LARGEST_CHUNK = 1024  # beyond it a small network gains nothing

Engines = Literal["auto", "fast", "reference"]


class Plan(Protocol):
    """What is regressed on u: `groups` sets of `size` cotangents each, and numbers kept per sample."""

    @property
    def groups(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def needs(self) -> FieldNeeds: ...

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
class PassSettings:
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
class PassResult:
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


@dataclass(frozen=True)
class SupportNetworks:
    """The networks a pass evaluates beside the measured one.

    `proxy_module` gives vhat = its u(x_t, t, t) for the proxies `ema` and `teacher`; `by_name` are "ema" and "teacher",
    for the estimators that ask for one.
    """

    proxy: Proxy = "self"
    proxy_module: nn.Module | None = None
    by_name: Mapping[str, nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.proxy not in get_args(Proxy):
            raise did_you_mean("proxy", self.proxy, get_args(Proxy))


def run_pass(
    plan: Plan,
    module: nn.Module,
    draws: Draws,
    settings: PassSettings,
    *,
    support: SupportNetworks = SupportNetworks(),
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
    checkpoint: PassCheckpoint | None = None,
) -> PassResult:
    """Measure `plan` on samples 0..N-1 of `draws`.

    Args:
        plan: The cotangents, losses and per-sample numbers to measure.
        module: The network whose gradient is measured.
        draws: The law of the samples.
        settings: Number of samples, bins, engine, precision.
        support: Proxy, and networks that estimators name.
        progress: Receives (samples done, N).
        say: Receives one-line notes.
        checkpoint: Where an interrupted pass keeps its state; the pass resumes from what is there.

    Returns:
        Moments by cell and layer, and numbers by sample.

    Raises:
        InputError: The model is random, mixes samples or returns non-finite numbers, or the requested derivative
            cannot be computed.
    """
    say = say or _mute
    prepared = _prepare(plan, module, draws, settings, support, say)
    totals = prepared.totals
    state = checkpoint.load() if checkpoint is not None else None
    if state is not None:
        totals.restore(state)
    order = prepared.cells.order
    try:
        while (start := totals.gradient.position) < len(order):
            index = order[start : start + prepared.chunk]
            prepared.measure(plan, index)
            if progress is not None:
                progress(start + len(index), len(order))
            if checkpoint is not None and checkpoint.due():
                checkpoint.save(totals.state())
    except KeyboardInterrupt:
        if checkpoint is not None and totals.whole:
            checkpoint.save(totals.state())
        raise
    if checkpoint is not None:
        checkpoint.clear()
    return prepared.result()


@dataclass(frozen=True)
class _PreparedPass:
    """Everything that is made once: samples' cells, fields, engine, derivative and running totals."""

    module: nn.Module
    draws: Draws
    r: np.ndarray
    t: np.ndarray
    cells: Cells
    builder: FieldBuilder
    engine: Engine
    derivative: Derivative
    losses: LossEngine | None
    chunk: int
    totals: _Totals

    def measure(self, plan: Plan, index: np.ndarray) -> None:
        """Adds the samples `index`. A function of its own, so that a chunk's tensors are freed before the next one."""
        inputs, fields, graph = evaluate_batch(self.builder, self.engine, self.derivative, self.draws.batch(index))
        cotangents = fields.apply_weight(plan.cotangents(fields), axis=1)
        _require_finite(cotangents, fields, inputs, index)
        factors = self.engine.factors(inputs, cotangents, graph)
        if self.losses is not None:
            factors = self.losses.beside(factors, fields)
        outputs = plan.outputs(fields)
        if outputs is not None:
            outputs = fields.apply_weight(outputs, axis=1)
        prefix = prefix_of(self.module)
        named = ((name.removeprefix(prefix), one) for name, one in factors)
        self.totals.add(index, plan.scalars(fields), outputs, named)

    def result(self) -> PassResult:
        """What the pass measured, once every sample is in."""
        labels = self.draws.labels_of(np.arange(len(self.r)))
        scalars = {name: values.numpy() for name, values in self.totals.scalars.items()}
        return PassResult(
            self.cells,
            self.totals.gradient,
            self.totals.output,
            scalars,
            self.r,
            self.t,
            labels,
            self.draws.times.stratified,
            self.derivative.name,
        )


def _prepare(
    plan: Plan,
    module: nn.Module,
    draws: Draws,
    settings: PassSettings,
    support: SupportNetworks,
    say: Callable[[str], None],
) -> _PreparedPass:
    """Copies the networks, sorts the samples into cells, and tries engine and derivative on the first samples."""

    def frozen(network: nn.Module) -> nn.Module:
        copied = in_precision(copy.deepcopy(network).to(settings.device), settings.dtype)
        return copied.eval().requires_grad_(False)

    def cast(values: Tensor) -> Tensor:
        return values.to(settings.device, settings.dtype)

    measured = frozen(module)
    use_proxy = support.proxy_module is not None and support.proxy != "self"
    proxy_module = frozen(support.proxy_module) if use_proxy and support.proxy_module is not None else measured
    others = {name: frozen(network) for name, network in support.by_name.items()}
    numbers = np.arange(settings.samples)
    r, t = draws.times_of(numbers)
    bins = settings.bins
    if isinstance(draws.times, GridTimes):  # only its own cells are samples of one law
        bins = (draws.times.r_bins, draws.times.t_bins)
    cells = make_cells(r, t, bins)
    builder = FieldBuilder(measured, proxy_module, draws, plan.needs, support.proxy, cast, others)
    # checked where derivatives count, which is not at r = t
    apart = np.flatnonzero(r < t) if (r < t).any() else numbers
    batch = draws.batch(apart[:_DERIVATIVE_SAMPLES])
    inputs = builder.inputs(batch)
    first = select_samples(inputs, slice(_ENGINE_SAMPLES))
    if draws.guidance is not None:
        builder.require_null_label(first)
    engine = prepare_engine(measured, first, settings.engine, say)
    dx = cast(batch.velocity)
    dx, dt = dx.expand(2, *dx.shape), torch.tensor([[1.0], [0.0]]).to(dx).expand(2, len(dx))
    checked = None if engine.checked_jvp is None else (first, engine.checked_jvp)
    derivative = choose_derivative(settings.derivative, measured, inputs, dx, dt, say, checked)
    losses = None
    if plan.losses:
        fields = evaluate_batch(builder, engine, derivative, draws.batch(cells.order[:_ENGINE_SAMPLES]))[1]
        losses = LossEngine(measured, engine, plan.losses, fields, say, derivative.jvp)
    at_once = plan.groups * plan.size + 2  # cotangents, and the activations themselves, forward and backward
    chunk = settings.chunk or _chunk(_CHUNK_BYTES // (engine.bytes_per_sample * at_once + 1), cells)
    prefix = prefix_of(measured)
    parameters = {name.removeprefix(prefix): p.numel() for name, p in measured.named_parameters()}
    totals = _Totals(cells, parameters, plan)
    return _PreparedPass(measured, draws, r, t, cells, builder, engine, derivative, losses, chunk, totals)


def evaluate_batch(
    builder: FieldBuilder, engine: Engine, derivative: Derivative, batch: Batch
) -> tuple[Inputs, Fields, ForwardGraph | None]:
    """The network's inputs, the fields, and the forward pass that derivatives and gradients share."""
    inputs = builder.inputs(batch)
    graph = engine.forward_graph(inputs)
    shared = None
    if graph is not None and graph.x.requires_grad and derivative.jvp is None:
        shared = graph.derivatives
    return inputs, builder.fields(batch, inputs, derivative.differentiate, shared), graph


def _mute(note: str) -> None:
    """Drops a note."""


class _Totals:
    """Running totals of a pass: gradient and output moments, and numbers per sample."""

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
