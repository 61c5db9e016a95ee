"""Models of one shape trained together, as one vectorized program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap
from torch.utils import _pytree as pytree

from mfdiag.derivatives.attention import twice_differentiable
from mfdiag.flow.density import DensityTimes
from mfdiag.flow.paths import parse_path
from mfdiag.flow.weighting import parse_weighting
from mfdiag.training.beta_rule import BetaRule, stack_rules
from mfdiag.training.compiling import compile_step
from mfdiag.training.draws import BatchFeed
from mfdiag.training.estimator_loss import estimator_losses
from mfdiag.training.loss import LossCoefficients, Params, TrainBatch, training_loss
from mfdiag.training.optimizers import OptimizerMoments, schedule_factor, step_parameters
from mfdiag.training.spec import TrainSpec
from mfdiag.training.trainable import trainable_estimator

__all__ = ["Ensemble", "ModelRates", "TrainState", "ensemble_key", "initial_state", "stack_rates", "train_step"]

_GRAPH_STEPS = 20  # training steps in one CUDA graph: enough to hide the cost of a launch


class TrainState(NamedTuple):
    """Everything that a training step changes.

    Attributes:
        params: The weights.
        ema: Their average.
        moments: The optimizer's moments.
        steps: Number of completed steps, 0-d.
        tally: Sums [2] of the loss and of the gradient norm over the steps since the last entry of the log.
    """

    params: Params
    ema: Params
    moments: OptimizerMoments
    steps: Tensor
    tally: Tensor


class ModelRates(NamedTuple):
    """What may differ between models that train together.

    Loss coefficients, learning rate and EMA decay are 0-d each; the rule that beta follows is None if it is constant.
    """

    coefficients: LossCoefficients
    learning_rate: Tensor
    ema_decay: Tensor
    beta_rule: BetaRule | None = None


def initial_state(module: nn.Module) -> TrainState:
    """The state before the first step."""
    params = {name: p.detach().clone() for name, p in module.named_parameters()}
    zeros = {name: torch.zeros_like(p) for name, p in params.items()}
    return TrainState(
        params, params, OptimizerMoments(zeros, zeros), torch.zeros((), dtype=torch.float64), torch.zeros(2)
    )


def train_step(
    module: nn.Module, spec: TrainSpec, state: TrainState, batch: TrainBatch, rates: ModelRates
) -> TrainState:
    """One training step of one model.

    Args:
        module: The network, used for its structure only.
        spec: What all models of the ensemble have in common.
        state: The state before the step.
        batch: Samples of the step.
        rates: What is the model's own.

    Returns:
        The state after the step.
    """
    weighting = parse_weighting(spec.loss.weighting)
    estimator = None if spec.loss.estimator is None else trainable_estimator(spec.loss.estimator)

    coefficients = rates.coefficients
    if rates.beta_rule is not None and coefficients.beta is not None:
        factor = rates.beta_rule.factor(batch.r, batch.t, state.steps / spec.steps)
        coefficients = coefficients._replace(beta=coefficients.beta * factor)

    def loss_at(params: Params) -> Tensor:
        if estimator is not None:
            path = parse_path(spec.path)
            losses = estimator_losses(module, params, state.ema, batch, estimator, weighting, path)
            return (losses if batch.weight is None else batch.weight * losses).mean()
        proxy = params if spec.loss.proxy == "self" else state.ema
        return training_loss(module, params, proxy, batch, coefficients, weighting)

    gradients, loss = grad_and_value(loss_at)(state.params)
    norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
    count = state.steps + 1
    rate = rates.learning_rate * schedule_factor(spec.schedule, spec.steps, count).to(rates.learning_rate.dtype)
    params, moments = step_parameters(spec.optimizer, state.params, gradients, state.moments, count, rate, norm)
    ema = {name: average.lerp(params[name], 1 - rates.ema_decay) for name, average in state.ema.items()}
    return TrainState(params, ema, moments, count, state.tally + torch.stack([loss, norm]))


def stack_rates(specs: Sequence[TrainSpec], device: str) -> ModelRates:
    """The rates of all models, stacked [models]; a coefficient that is zero for all of them is None."""

    def stacked(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.get_default_dtype(), device=device)

    losses = [spec.loss for spec in specs]
    beta, gamma = ([getattr(loss, name) for loss in losses] for name in ("beta", "gamma"))
    anchors = [loss.anchor.coefficient for loss in losses if loss.anchor]
    return ModelRates(
        LossCoefficients(*(stacked(values) if any(values) else None for values in (beta, gamma, anchors))),
        stacked([spec.learning_rate for spec in specs]),
        stacked([spec.ema_decay for spec in specs]),
        stack_rules([loss.beta_by for loss in losses], device),
    )


def ensemble_key(spec: TrainSpec) -> str:
    """A key that models which can train together share: the specification without what may differ between them.

    `ModelRates` and `BatchFeed` handle what may differ.
    """
    cells = spec.loss.beta_by.cells if spec.loss.beta_by else None
    shape = (len(cells), len(cells[0])) if cells else None
    update = {"beta": 0, "gamma": 0, "anchor": spec.loss.anchor is not None, "beta_by": shape}
    loss = spec.loss.model_copy(update=update)
    has_weights = spec.times.partition(":")[0] == DensityTimes.kind
    same = {
        "data": "",
        "times": str(has_weights),
        "source": "",
        "seed": 0,
        "learning_rate": 1,
        "ema_decay": 0,
        "loss": loss,
    }
    return repr(spec.model_copy(update=same))


class Ensemble:
    """Models that share an `ensemble_key`, trained together.

    The result of each model depends on its own specification and state only, up to rounding.

    Args:
        module: The network, used for its structure only.
        specs: One specification for each model.
        states: The state of each model, all after the same number of steps.
        feed: Batches of all models.
        device: Where to train.
        compiled: Whether to compile the training step. If compilation fails, `say` gets a note and the same program
            runs uncompiled.
        say: Receives notes.
    """

    def __init__(
        self,
        module: nn.Module,
        specs: Sequence[TrainSpec],
        states: Sequence[TrainState],
        feed: BatchFeed,
        *,
        device: str,
        compiled: bool,
        say: Callable[[str], None],
    ) -> None:
        self.module, self.specs, self.feed, self.say = module.to(device), specs, feed, say
        self.rates = stack_rates(specs, device)
        stacked = [torch.stack(leaves).to(device) for leaves in zip(*map(_leaves, states), strict=True)]
        self.state: TrainState = pytree.tree_unflatten(stacked, pytree.tree_structure(states[0]))
        self._step = compile_step(self._eager) if compiled else self._eager
        self._compile_pending, self._graph = compiled, device.startswith("cuda") and compiled
        self._recording: Any = None  # a CUDA graph of `_GRAPH_STEPS` steps, once recorded
        self._buffer: TrainBatch | None = None

    @property
    def steps_done(self) -> int:
        """Number of completed steps, the same for all models."""
        return int(self.state.steps[0])

    def states(self) -> list[TrainState]:
        """The state of each model, on the CPU."""
        leaves = [leaf.cpu() for leaf in _leaves(self.state)]
        structure = pytree.tree_structure(self.state)
        return [pytree.tree_unflatten([leaf[i].clone() for leaf in leaves], structure) for i in range(len(self.specs))]

    def take_tally(self) -> Tensor:
        """Sums [models, 2] of the loss and of the gradient norm since the last call."""
        tally = self.state.tally.cpu().clone()
        self.state.tally.zero_()
        return tally

    @twice_differentiable()
    def advance(self, steps: int) -> None:
        """Train for `steps` more steps."""
        done = self.steps_done
        stop = done + steps
        if self._compile_pending:
            self._try_compiled()
        while self._graph and done + _GRAPH_STEPS <= stop:
            self._replay_steps(done)
            done += _GRAPH_STEPS
        for step in range(done, stop):
            state = self._step(self.state, self.feed.batch(step))
            if self._graph:
                _copy(self.state, state)  # a recorded graph reads and writes these very tensors
            else:
                self.state = state

    def _eager(self, state: TrainState, batch: TrainBatch) -> TrainState:
        def step(state: TrainState, batch: TrainBatch, rates: ModelRates) -> TrainState:
            return train_step(self.module, self.specs[0], state, batch, rates)

        inputs = (state, batch, self.rates)
        axes = pytree.tree_map(lambda leaf: None if leaf is None else 0, inputs)
        return vmap(step, in_dims=axes)(*inputs)

    def _try_compiled(self) -> None:
        """Compile by running a step; fall back to the uncompiled program if that fails."""
        self._compile_pending = False
        try:
            self._step(self.state, self.feed.batch(self.steps_done))
        except Exception as error:  # whatever a compiler raises, the program also runs without it
            reason = str(error).strip().split("\n")[0]
            self.say(f"Compilation failed ({reason}); training runs uncompiled, which is slower.")
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
        for buffer, values in zip(self._buffer, block, strict=True):
            if buffer is not None and values is not None:
                buffer.copy_(values)
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


def _leaves(state: TrainState) -> list[Tensor]:
    return pytree.tree_leaves(state)


def _copy(target: TrainState, source: TrainState) -> None:
    for into, values in zip(_leaves(target), _leaves(source), strict=True):
        into.copy_(values)
