"""One pass over the samples: fields, cotangents, factors, moments. Every measurement of mfdiag is one such pass."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from mfdiag.derivatives.choice import Derivative, choose_derivative
from mfdiag.derivatives.time_steps import time_notes
from mfdiag.errors import InputError, is_out_of_memory
from mfdiag.fields.builder import FieldBuilder
from mfdiag.fields.fields import Fields
from mfdiag.fields.inputs import Inputs, select_samples
from mfdiag.flow.draw import Batch, Draws
from mfdiag.flow.times import GridTimes
from mfdiag.gradients.cells import Cells, make_cells
from mfdiag.gradients.engine import batch_gradient, prepare_engine, require_sum, single_gradients
from mfdiag.gradients.engine_protocol import Engine
from mfdiag.gradients.fallback_note import fallback_note
from mfdiag.gradients.fast_engine import FastEngine
from mfdiag.gradients.functional import gradient_size
from mfdiag.gradients.loss_engine import LossEngine
from mfdiag.gradients.pass_checkpoint import PassCheckpoint
from mfdiag.gradients.pass_types import PassResult, PassSettings, Plan, SupportNetworks
from mfdiag.gradients.recorder import RecordedForward
from mfdiag.gradients.running_check import Decision, FastPathError, Sums, WeightedSums, check_weights
from mfdiag.gradients.totals import Totals, stretch
from mfdiag.models.prediction import PredictionAdapter
from mfdiag.models.wrapper import prefix_of
from mfdiag.world import current_world

__all__ = ["PassResult", "PassSettings", "Plan", "SupportNetworks", "evaluate_batch", "run_pass"]

_ENGINE_SAMPLES = 2  # samples the engine is tried on before a pass starts; each costs one gradient
_DERIVATIVE_SAMPLES = 4  # samples the derivative is checked on
_COMPARED_SAMPLES = 4  # on which processes must agree
_TIME_SAMPLES = 8  # samples on which the dependence on times is checked
_CHUNK_BYTES = 288 << 20  # activations of a chunk; a larger chunk was no faster on a DiT of 4M parameters
_PARAMETER_MULTIPLE = 4  # the same in terms of the parameters, which each chunk reads and whose sums it writes,
_MOST_CHUNK_BYTES = 2 << 30  # up to this size
_LARGEST_CHUNK = 1024  # a larger chunk was no faster on a small network
_LARGEST_OF_CELLS = 256  # where a larger chunk would hold sums of several cells at once


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
        draws: The distribution of the samples.
        settings: Number of samples, bins, engine, precision.
        support: The proxy, and the networks that estimators ask for.
        progress: Receives (samples done, N).
        say: Receives one-line notes.
        checkpoint: Where an interrupted pass saves its state, and from where it resumes.

    Returns:
        Moments by cell and layer, and numbers by sample.

    Raises:
        InputError: The model is random, mixes samples or returns non-finite numbers, or the requested derivative
            cannot be computed.
    """
    say = say or _mute
    prepared = current_world().together(lambda: _prepare(plan, module, draws, settings, support, say))
    prepared = _resumed(plan, _agreed(plan, prepared), checkpoint, say)
    while True:
        try:
            _measure_chunks(plan, prepared, progress, checkpoint)
            break
        except FastPathError as error:
            say(f"The pass restarts, because {error.cause}: {fallback_note(module, error.decision.names)}")
            prepared = prepared.restarted(plan, error.decision)
            if checkpoint is not None:  # an older state holds sums of the path that failed
                prepared.save(checkpoint)
        except Exception as error:
            if not is_out_of_memory(error) or prepared.chunk == 1:
                raise
            prepared = prepared.in_smaller_chunks(plan, say)
        gc.collect()  # the error held the tensors of its chunk
    prepared.totals.share()
    if checkpoint is not None:
        current_world().on_first(checkpoint.clear)
    return prepared.result()


def _resumed(
    plan: Plan, prepared: _PreparedPass, checkpoint: PassCheckpoint | None, say: Callable[[str], None]
) -> _PreparedPass:
    """The pass with the samples that an interrupted one measured, in whatever number of processes."""
    world = current_world()
    state = checkpoint.load() if checkpoint is not None and world.rank == 0 else None
    position, left = world.broadcast(
        (0, {}) if state is None else (state["gradient"]["position"], state.get("left_to_reference", {}))
    )
    if left and (decision := Decision.from_state(left)):
        say(fallback_note(prepared.module, decision.names))
        prepared = prepared.restarted(plan, decision)
    if state is not None:
        prepared.totals.restore(state)
    elif position:
        prepared.totals.gradient.skip(position)
    return prepared


def _measure_chunks(
    plan: Plan,
    prepared: _PreparedPass,
    progress: Callable[[int, int], None] | None,
    checkpoint: PassCheckpoint | None,
) -> None:
    """Measures the samples that remain. Raises FastPathError where a fast path does not hold."""
    totals, order, world = prepared.totals, prepared.cells.order, current_world()
    progress = progress or _no_progress
    try:
        while (start := totals.gradient.position) < len(order):
            stop = prepared.measure_stretch(plan, start, progress)
            totals.advance(stop)
            progress(stop, len(order))
            if checkpoint is not None and world.broadcast(checkpoint.due()) and totals.resumable:
                prepared.save(checkpoint)
    except KeyboardInterrupt:
        if checkpoint is not None and world.size == 1 and totals.resumable:  # else the last state that was saved holds
            prepared.save(checkpoint)
        raise


@dataclass(frozen=True)
class _PreparedPass:
    """Everything that is prepared once: cells of the samples, fields, engine, derivative and running totals."""

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
    totals: Totals
    check: Sums
    decision: Decision = field(default_factory=Decision)

    def measure_stretch(self, plan: Plan, start: int, progress: Callable[[int, int], None]) -> int:
        """Add this process's share of the samples from position `start` on; returns where all shares end.

        An error of one process is raised in all. Raises FastPathError where a fast path does not hold.
        """
        order, world = self.cells.order, current_world()
        stop, chunks = stretch(start, self.totals.gradient.limit, len(order), self.chunk, world)

        def measure_share() -> None:
            for k, (first, last) in enumerate(chunks):
                if k:
                    progress(min(start + k * self.chunk * world.size, stop), len(order))
                self.measure(plan, first, order[first:last])

        world.together(measure_share)
        return stop

    def measure(self, plan: Plan, position: int, index: np.ndarray) -> None:
        """Add the samples `index` at a position. On return their tensors are freed, before the next chunk needs them.

        Raises FastPathError where a fast path does not hold for these samples.
        """
        n = len(index)
        inputs, fields, graph = evaluate_batch(self.builder, self.engine, self.derivative, self.draws.batch(index))
        cotangents = fields.apply_weight(plan.cotangents(fields), axis=1)
        _require_finite(cotangents, fields, inputs, index)
        factors = self.engine.factors(inputs, cotangents, graph)
        due, selection, sums = self.check.due(position), self.check.selection(position, n), []
        if due or self.check.unproved:
            selected = cotangents[:, selection]
            groups = [selected, *(selected[:1] for _ in plan.losses)]
            sums = [WeightedSums(selection, check_weights(position, k, group)) for k, group in enumerate(groups)]
            factors = sums[0].watch(factors)
        if self.losses is not None:
            factors = self.losses.append_losses(factors, fields, sums[1:])
        outputs = plan.outputs(fields)
        if outputs is not None:
            outputs = fields.apply_weight(outputs, axis=1)
        prefix = prefix_of(self.module)
        by_own_name = ((name.removeprefix(prefix), gradients) for name, gradients in factors)
        self.totals.add(index, plan.scalars(fields), outputs, by_own_name)
        if sums and (due or any(s.sums[name].any() for s in sums for name in self.check.unproved)):
            self._require_sums(sums, inputs, cotangents, fields)

    def _require_sums(self, sums: list[WeightedSums], inputs: Inputs, cotangents: Tensor, fields: Fields) -> None:
        """FastPathError where per-sample gradients do not add up to those of their sum; InputError without a remedy."""
        of_u, *of_losses = sums
        combined = torch.einsum("cn,cn...->n...", of_u.weights, cotangents[:, of_u.selection])
        expected = batch_gradient(self.module, select_samples(inputs, of_u.selection), combined)
        wrong = of_u.disagreeing(expected)
        losses = {}
        if of_losses:
            assert self.losses is not None
            selected = fields.select(of_u.selection)
            losses = {k: self.losses.disagreeing(k, selected, s) for k, s in enumerate(of_losses)}
        fast = frozenset(wrong - self.engine.capabilities.fallback)
        if decision := Decision(fast, {k: names for k, names in losses.items() if names}):
            raise FastPathError(decision, f"the gradient of {decision.names[0]} is not the sum over samples")
        if wrong:
            _require_no_mixing(self.module, inputs, cotangents[0])
        self.check.unproved -= {name for name, gradient in expected.items() if gradient.any()}

    def restarted(self, plan: Plan, decision: Decision) -> _PreparedPass:
        """The same pass without any samples, and with the parameters of `decision` left to the reference."""
        engine = self.engine
        if decision.cotangents:
            assert isinstance(engine, FastEngine)
            engine = engine.left_to_reference(decision.cotangents)
        if self.losses is not None:
            self.losses.leave_to_reference(decision.losses)
        totals = Totals(self.cells, self.totals.gradient.parameters, plan)
        check = Sums(engine.capabilities)
        return replace(self, engine=engine, totals=totals, check=check, decision=self.decision | decision)

    def in_smaller_chunks(self, plan: Plan, say: Callable[[str], None]) -> _PreparedPass:
        """The same pass in chunks of half the size, from where its totals are complete."""
        complete = self.totals.resumable and self.totals.gradient.position > 0 and current_world().size == 1
        begin = "continues" if complete else "starts again"
        say(f"not enough memory for {self.chunk} samples at once: the pass {begin} with {self.chunk // 2}.")
        smaller = replace(self, check=Sums(self.engine.capabilities)) if complete else self.restarted(plan, Decision())
        return replace(smaller, chunk=self.chunk // 2)

    def save(self, checkpoint: PassCheckpoint) -> None:
        """Save what the next run resumes from: the running totals, and what is left to the reference."""
        state = {**self.totals.state(), "left_to_reference": self.decision.state()}
        current_world().on_first(lambda: checkpoint.save(state))

    @property
    def way(self) -> tuple[object, ...]:
        """How gradients and derivatives are computed, which must not differ between processes."""
        of, slow = self.engine.capabilities, [] if self.losses is None else self.losses.slow
        paths = (of.layers, of.fallback, of.operations, of.idle, *slow)
        return (type(self.engine).__name__, self.derivative.name, dict(of.bare), *map(frozenset, paths))

    def result(self) -> PassResult:
        """What the pass measured, once every sample is added."""
        return PassResult(
            cells=self.cells,
            gradient=self.totals.gradient,
            output=self.totals.output,
            scalars={name: values.numpy() for name, values in self.totals.scalars.items()},
            r=self.r,
            t=self.t,
            labels=self.draws.labels_of(np.arange(len(self.r))),
            stratified=self.draws.times.stratified,
            derivative=self.derivative.name,
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
    r, t = draws.times_of(np.arange(settings.samples))
    bins = settings.bins
    if isinstance(draws.times, GridTimes):  # only in its own cells do all samples have one distribution
        bins = (draws.times.r_bins, draws.times.t_bins)
    cells = make_cells(r, t, bins)
    builder = _field_builder(plan, module, draws, settings, support)
    measured = builder.module
    # at r = t derivatives do not enter the residual, so they are checked elsewhere
    candidates = np.flatnonzero(r < t) if (r < t).any() else np.arange(settings.samples)
    tried = candidates[:_DERIVATIVE_SAMPLES]
    engine, derivative = _try_engine_and_derivative(builder, tried, _spread_samples(r, t), settings, say)
    activation_bytes, losses = engine.capabilities.bytes_per_sample, None
    if plan.losses:
        first = draws.batch(cells.order[:_ENGINE_SAMPLES])
        _, fields, graph = evaluate_batch(builder, engine, derivative, first)
        losses = LossEngine(measured, engine, plan.losses, fields, say, derivative.jvp)
        if graph is not None:  # after the trials, which may have changed the layers
            activation_bytes = graph.bytes_per_sample
    if engine.uses_rules:
        activation_bytes += _bytes_of_reference(measured, engine, losses)
    at_once = plan.groups * plan.size + 2  # cotangents, and the activations themselves, forward and backward
    chunk = settings.chunk or _chunk(_chunk_bytes(measured) // (activation_bytes * at_once + 1), cells)
    chunk = min(chunk, -(-settings.samples // current_world().size))  # a part for every process
    prefix = prefix_of(measured)
    parameters = {name.removeprefix(prefix): gradient_size(p) for name, p in measured.named_parameters()}
    totals = Totals(cells, parameters, plan)
    return _PreparedPass(
        measured, draws, r, t, cells, builder, engine, derivative, losses, chunk, totals, Sums(engine.capabilities)
    )


def _agreed(plan: Plan, prepared: _PreparedPass) -> _PreparedPass:
    """The pass with the chunk of rank 0. Raises InputError where processes would measure different things."""
    world, n = current_world(), len(prepared.cells.order)
    if world.size == 1:
        return prepared

    def cotangents() -> Tensor:
        spread = np.unique(np.linspace(0, n - 1, _COMPARED_SAMPLES).round().astype(int))
        batch = prepared.draws.batch(spread)
        fields = evaluate_batch(prepared.builder, prepared.engine, prepared.derivative, batch)[1]
        return plan.cotangents(fields)

    world.require_same([world.together(cotangents)])
    for rank, way in enumerate(world.exchange(prepared.way)):
        if way != prepared.way:
            raise InputError(
                f"Expected all processes to differentiate the network alike, but rank {rank} does it in another way. "
                "Use the same GPUs and versions of torch on all machines, or pass --engine reference."
            )
    return replace(prepared, chunk=world.broadcast(prepared.chunk))


def _bytes_of_reference(module: nn.Module, engine: Engine, losses: LossEngine | None) -> int:
    """Memory of one sample's gradients of the parameters that are left to the reference."""
    names = engine.capabilities.fallback.union(*([] if losses is None else losses.slow))
    return sum(gradient_size(p) * p.element_size() for name, p in module.named_parameters() if name in names)


def _field_builder(
    plan: Plan, module: nn.Module, draws: Draws, settings: PassSettings, support: SupportNetworks
) -> FieldBuilder:
    """The builder of fields on copies of the networks."""
    measured = proxy_module = settings.cast_network(module)
    if support.proxy_module is not None and support.proxy != "self":
        proxy_module = settings.cast_network(support.proxy_module)
    by_name = {name: settings.cast_network(network) for name, network in support.by_name.items()}
    return FieldBuilder(measured, proxy_module, draws, plan.needs, support.proxy, settings.cast, by_name)


def _try_engine_and_derivative(
    builder: FieldBuilder,
    index: np.ndarray,
    timed: np.ndarray,
    settings: PassSettings,
    say: Callable[[str], None],
) -> tuple[Engine, Derivative]:
    """The engine and the derivative of a pass, checked on the samples `index`, and times on those of `timed`."""
    batch = builder.draws.batch(index)
    inputs = builder.inputs(batch)
    first = select_samples(inputs, slice(_ENGINE_SAMPLES))
    if builder.draws.guidance is not None:
        builder.require_null_label(first)
    engine = prepare_engine(builder.module, first, settings.engine, say)
    v_c = settings.cast(batch.velocity)
    dx, dt = v_c.expand(2, *v_c.shape), torch.tensor([[1.0], [0.0]]).to(v_c).expand(2, len(v_c))  # (v_c, 1), (v_c, 0)
    checked = engine.capabilities.checked_jvp
    network = _network_of_times(builder.module)
    notes = time_notes(network, builder.inputs(builder.draws.batch(timed)), _times_of(network))
    for note in notes:
        say(note)
    derivative = choose_derivative(
        settings.derivative, builder.module, inputs, dx, dt, say, checked, smooth_times=not notes
    )
    return engine, derivative


def _spread_samples(r: np.ndarray, t: np.ndarray) -> np.ndarray:
    """A few samples whose times r, and whose times t, cover the range of all samples."""
    ranks = np.linspace(0, len(t) - 1, _TIME_SAMPLES // 2).round().astype(int)
    return np.unique([np.argsort(times, kind="stable")[ranks] for times in (r, t)])


def _network_of_times(module: nn.Module) -> nn.Module:
    """The network that receives the times, without the factors of a prediction, which are smooth in t."""
    return module.network if isinstance(module, PredictionAdapter) else module


def _times_of(network: nn.Module) -> tuple[str, ...]:
    """The times that a network takes; a card may say that it has no r."""
    card = getattr(network, "card", None)
    return ("t",) if card is not None and not card.output.average else ("r", "t")


def evaluate_batch(
    builder: FieldBuilder, engine: Engine, derivative: Derivative, batch: Batch
) -> tuple[Inputs, Fields, RecordedForward | None]:
    """Evaluate the network on a batch.

    Args:
        builder: Makes inputs and fields of samples.
        engine: The run's engine.
        derivative: The run's derivative.
        batch: Samples of the draws.

    Returns:
        The network's inputs, the fields, and the forward pass that derivatives and gradients share.
    """
    inputs = builder.inputs(batch)
    graph = engine.forward_graph(inputs)
    # a derivative with a `jvp` is a difference quotient, which double backward must not replace
    shared = graph.derivatives if graph is not None and graph.reversible and derivative.jvp is None else None
    return inputs, builder.fields(batch, inputs, derivative.differentiate, shared), graph


def _require_no_mixing(module: nn.Module, inputs: Inputs, cotangent: Tensor) -> None:
    """InputError where the model mixes the samples of a batch, among the even ones and among the odd ones.

    A sample whose routing is at a tie of rounding, and differs between batches, is in one half alone.
    """
    errors = []
    for part in (slice(0, None, 2), slice(1, None, 2)):
        half, e = select_samples(inputs, part), cotangent[part]
        if not len(e):
            return
        try:
            require_sum(module, half, e, single_gradients(module, half, e))
        except InputError as error:
            errors.append(error)
    if len(errors) == 2:
        raise errors[0]


def _mute(note: str) -> None:
    """Drops a note."""


def _no_progress(done: int, total: int) -> None:
    """Reports nothing."""


def _chunk_bytes(module: nn.Module) -> int:
    """Memory for a chunk's activations: more for a large network, whose cost by chunk grows with its parameters."""
    parameters = sum(p.numel() * p.element_size() for p in module.parameters())
    return max(_CHUNK_BYTES, min(_PARAMETER_MULTIPLE * parameters, _MOST_CHUNK_BYTES))


def _chunk(fitting: int, cells: Cells) -> int:
    """Samples at once: what fits, in chunks of equal size, which are whole jackknife blocks if these are smaller."""
    n = len(cells.leaf)
    block = max(1, n // cells.blocks)
    largest = min(_LARGEST_CHUNK, max(_LARGEST_OF_CELLS, n // len(np.unique(cells.leaf))))
    chunks, processes = -(-n // int(np.clip(fitting, 1, largest))), current_world().size
    chunks = -(-chunks // processes) * processes
    return -(-n // (chunks * block)) * block if n > chunks * block else -(-n // chunks)


def _require_finite(cotangents: Tensor, fields: Fields, inputs: Inputs, index: np.ndarray) -> None:
    """InputError that names the first sample with a cotangent that is not finite."""
    if cotangents.isfinite().all():
        return
    bad = ~cotangents.transpose(0, 1).flatten(1).isfinite().all(1)
    k = int(bad.nonzero()[0])
    part = "its derivative" if fields.u[k].isfinite().all() else "u"
    raise InputError(
        f"The model returns NaN or infinity in {part} for {int(bad.sum())} of {len(bad)} samples, first at sample "
        f"{int(index[k])} (r={float(inputs[1][k]):.4g}, t={float(inputs[2][k]):.4g}): "
        "check the weights and the range of times, or try --dtype float64."
    )
