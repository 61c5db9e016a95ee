"""Models of one shape trained together: one vectorised program whose every operation works on all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap
from torch.utils import _pytree as pytree

from mfdiag.derivatives.attention import twice_differentiable
from mfdiag.flow.density import DensityTimes
from mfdiag.flow.weighting import parse_weighting
from mfdiag.training.compiling import compiled as compiled_step
from mfdiag.training.draws import Feed
from mfdiag.training.loss import Params, Point, TrainBatch, loss_of
from mfdiag.training.optimizers import OptimizerMoments, schedule_factor, step_parameters
from mfdiag.training.spec import TrainSpec

__all__ = ["Ensemble", "Rates", "State", "rates_of", "start", "together", "update"]

_GRAPH_STEPS = 20  # of one replay of a CUDA graph


class State(NamedTuple):
    """All that training one model changes: weights, their average, moments, steps done (0-d), and sums for the log.

    `tally` [2] holds the loss and the gradient's norm summed over the steps since the last entry of the log.
    """

    params: Params
    ema: Params
    moments: OptimizerMoments
    steps: Tensor
    tally: Tensor


class Rates(NamedTuple):
    """What may differ between models trained together, each a 0-d tensor: loss coefficients and rates."""

    point: Point
    learning_rate: Tensor
    ema_decay: Tensor


def start(module: nn.Module) -> State:
    """The state before the first step."""
    params = {name: p.detach().clone() for name, p in module.named_parameters()}
    zeros = {name: torch.zeros_like(p) for name, p in params.items()}
    return State(params, params, OptimizerMoments(zeros, zeros), torch.zeros((), dtype=torch.float64), torch.zeros(2))


def update(module: nn.Module, spec: TrainSpec, state: State, batch: TrainBatch, rates: Rates) -> State:
    """The state of one model after one more step; `spec` gives what `rates` does not."""
    weighting = parse_weighting(spec.loss.weighting)
    gradients, loss = grad_and_value(lambda params: loss_of(module, params, state.ema, batch, rates.point, weighting))(
        state.params
    )
    norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
    count = state.steps + 1
    rate = rates.learning_rate * schedule_factor(spec.schedule, spec.steps, count).to(rates.learning_rate.dtype)
    params, moments = step_parameters(spec.optimizer, state.params, gradients, state.moments, count, rate, norm)
    ema = {name: average.lerp(params[name], 1 - rates.ema_decay) for name, average in state.ema.items()}
    return State(params, ema, moments, count, state.tally + torch.stack([loss, norm]))


def rates_of(specs: Sequence[TrainSpec], device: str) -> Rates:
    """The rates of each model, stacked [models]; a coefficient that is zero for all of them is left out."""

    def stacked(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.get_default_dtype(), device=device)

    losses = [spec.loss for spec in specs]
    beta, gamma = ([getattr(loss, name) for loss in losses] for name in ("beta", "gamma"))
    anchors = [loss.anchor.coefficient for loss in losses if loss.anchor]
    return Rates(
        Point(*(stacked(values) if any(values) else None for values in (beta, gamma, anchors))),
        stacked([spec.learning_rate for spec in specs]),
        stacked([spec.ema_decay for spec in specs]),
    )


def together(spec: TrainSpec) -> str:
    """What models must have in common to train together, as a key: all but what `Rates` and `Feed` take apart."""
    loss = spec.loss.model_copy(update={"beta": 0, "gamma": 0, "anchor": spec.loss.anchor is not None})
    times = spec.times.partition(":")[0] == DensityTimes.kind  # whether samples have weights
    same = {"data": "", "times": str(times), "source": "", "seed": 0, "learning_rate": 1, "ema_decay": 0, "loss": loss}
    return repr(spec.model_copy(update=same))


class Ensemble:
    """Trains models that `together` says belong together; `module` lends its structure.

    Each model's result depends on its own specification and state alone, up to rounding. `compiled` asks for one
    compiled program; where compilation is not possible, `say` is told and the same program runs uncompiled.
    """

    def __init__(
        self,
        module: nn.Module,
        specs: Sequence[TrainSpec],
        states: Sequence[State],
        feed: Feed,
        *,
        device: str,
        compiled: bool,
        say: Callable[[str], None],
    ) -> None:
        self.module, self.specs, self.feed, self.say = module.to(device), specs, feed, say
        self.rates = rates_of(specs, device)
        stacked = [torch.stack(leaves).to(device) for leaves in zip(*map(_leaves, states), strict=True)]
        self.state: State = pytree.tree_unflatten(stacked, pytree.tree_structure(states[0]))
        self._step = compiled_step(self._eager) if compiled else self._eager
        self._untried, self._graph = compiled, device.startswith("cuda") and compiled
        self._recording: Any = None  # a CUDA graph of some steps, once there is one
        self._buffer: TrainBatch | None = None

    @property
    def steps_done(self) -> int:
        """Steps done, the same for all models."""
        return int(self.state.steps[0])

    def states(self) -> list[State]:
        """The state of each model, on the CPU."""
        leaves = [leaf.cpu() for leaf in _leaves(self.state)]
        structure = pytree.tree_structure(self.state)
        return [pytree.tree_unflatten([leaf[i].clone() for leaf in leaves], structure) for i in range(len(self.specs))]

    def take_tally(self) -> Tensor:
        """Sums of loss and gradient norm [models, 2] since the last call."""
        tally = self.state.tally.cpu().clone()
        self.state.tally.zero_()
        return tally

    @twice_differentiable()
    def advance(self, steps: int) -> None:
        """Takes `steps` more steps."""
        done = self.steps_done
        stop = done + steps
        if self._untried:
            self._try()
        while self._graph and done + _GRAPH_STEPS <= stop:
            self._replay_steps(done)
            done += _GRAPH_STEPS
        for step in range(done, stop):
            state = self._step(self.state, self.feed.batch(step))
            if self._graph:
                _copy(self.state, state)  # a recorded graph goes on from these very tensors
            else:
                self.state = state

    def _eager(self, state: State, batch: TrainBatch) -> State:
        def one(state: State, batch: TrainBatch, rates: Rates) -> State:
            return update(self.module, self.specs[0], state, batch, rates)

        inputs = (state, batch, self.rates)
        places = pytree.tree_map(lambda leaf: None if leaf is None else 0, inputs)
        return vmap(one, in_dims=places)(*inputs)

    def _try(self) -> None:
        """Compiles; falls back to the uncompiled program where that fails."""
        self._untried = False
        try:
            self._step(self.state, self.feed.batch(self.steps_done))
        except Exception as error:  # whatever a compiler raises, the same program runs without it
            reason = str(error).strip().split("\n")[0]
            self.say(f"Training runs uncompiled, and slower, because compilation failed ({reason}).")
            self._step, self._graph = self._eager, False

    def _replay_steps(self, step: int) -> None:
        """`_GRAPH_STEPS` steps as one CUDA graph, recorded on the first call."""
        batches = [self.feed.batch(number) for number in range(step, step + _GRAPH_STEPS)]
        block = TrainBatch._make(
            None if column[0] is None else torch.stack(column) for column in zip(*batches, strict=True)
        )
        if self._buffer is None:
            self._buffer = block
            self._recording = self._record()
        for kept, values in zip(self._buffer, block, strict=True):
            if kept is not None and values is not None:
                kept.copy_(values)
        self._recording.replay()

    def _record(self) -> Any:
        assert self._buffer is not None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            state = self.state
            for number in range(_GRAPH_STEPS):
                batch = TrainBatch._make(None if values is None else values[number] for values in self._buffer)
                state = self._step(state, batch)
            _copy(self.state, state)
        return graph


def _leaves(state: State) -> list[Tensor]:
    return pytree.tree_leaves(state)


def _copy(kept: State, new: State) -> None:
    for into, values in zip(_leaves(kept), _leaves(new), strict=True):
        into.copy_(values)
