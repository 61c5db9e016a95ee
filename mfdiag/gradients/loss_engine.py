"""Per-sample gradients of any loss, for estimators whose gradient is no cotangent of u(x_t, r, t).

The loss of a chunk is computed once, and every use of every layer is recorded. Samples do not mix, so the gradient of
the summed loss with respect to a layer's output holds each sample's own cotangent, and the layer's rule turns it into
factors as in the fast engine. Where the loss contains a directional derivative, the network runs on dual numbers
(y, y'). A layer that is linear in its input has y = W a and y' = W a', so its gradient is g (x) a + g' (x) a'.

The slow, obvious twin takes the gradient of one sample's loss at a time. Each loss is tried both ways on a few samples,
and parameters on which the two disagree are left to the twin.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp

from mfdiag.derivatives.differentiable_jvp import DifferentiableJvp, jvp_by_double_backward, jvp_by_dual_numbers
from mfdiag.fields.differentiable_network import DifferentiableNetwork, Loss
from mfdiag.fields.fields import Fields
from mfdiag.flow.conditions import Condition
from mfdiag.gradients.agreement import disagreeing_parameters
from mfdiag.gradients.concatenated import Concatenated, sum_over_uses
from mfdiag.gradients.engine_protocol import Engine
from mfdiag.gradients.factors import Dense, Factors, NoGradient
from mfdiag.gradients.fallback_note import fallback_note
from mfdiag.gradients.functional import (
    call,
    expand_over_samples,
    flat_gradient,
    gradient_size,
    names_by_layer,
    parameter_places,
)
from mfdiag.gradients.recorder import LayerUse, Recording, reachable, record_uses
from mfdiag.gradients.rules import LINEAR_RULES, rule_for
from mfdiag.gradients.running_check import (
    Decision,
    FastPathError,
    WeightedSums,
    part_note,
    rows_per_sample,
    unexpected_layers,
)

__all__ = ["LossEngine"]


class LossEngine:
    """Factors of the per-sample gradients of losses, by the layers and bare parameters that serve the run's engine.

    Args:
        module: The network.
        engine: The run's engine for the same network.
        losses: The losses to differentiate.
        fields: Fields of a few samples on which each loss is tried.
        say: Receives a note where a fast path fails.
        jvp: Replaces exact derivatives where the network has none.
    """

    def __init__(
        self,
        module: nn.Module,
        engine: Engine,
        losses: Sequence[Loss],
        fields: Fields,
        say: Callable[[str], None],
        jvp: DifferentiableJvp | None = None,
    ) -> None:
        self.module, self.losses, self.jvp = module, losses, jvp
        self.places = parameter_places(module)
        self.state = {name: p.detach() for name, p in module.named_parameters()}
        self.layers = {name: module.get_submodule(name) for name in sorted(engine.capabilities.layers)}
        self.own = names_by_layer(module, self.layers)
        self.bare = engine.capabilities.bare
        self.operations, self.idle = engine.capabilities.operations, engine.capabilities.idle
        self.rows: dict[Loss, dict[str, tuple[tuple[float, float], ...]]] = {}  # on the first samples, by loss
        self.slow = [self._slow_parameters(loss, fields) if engine.uses_rules else list(self.state) for loss in losses]
        if engine.uses_rules and (slow := {name for names in self.slow for name in names}):
            say(fallback_note(module, slow, " for some estimators"))

    def append_losses(
        self, factors: Iterator[tuple[str, Factors]], fields: Fields, sums: Sequence[WeightedSums] = ()
    ) -> Iterator[tuple[str, Factors]]:
        """Append the factors of each loss to those of the cotangents, as one group.

        Args:
            factors: The factors of the cotangents, by parameter.
            fields: The samples' fields.
            sums: One for each loss, to add up its gradients; empty for none.

        Yields:
            The name of each parameter, and its factors [C + number of losses, n, P].
        """
        n = len(fields.u)
        of_losses = [self.factors(k, fields) for k in range(len(self.losses))]
        if sums:
            of_losses = [dict(s.watch(by_name.items())) for s, by_name in zip(sums, of_losses, strict=True)]
        for name, of_cotangents in factors:
            parts = (of_cotangents, *(by_name.pop(name) for by_name in of_losses))
            yield name, Concatenated(parts, n, gradient_size(self.state[name]))

    def factors(self, index: int, fields: Fields) -> dict[str, Factors]:
        """Factors [1, n, P] of every parameter for the loss number `index`.

        Raises FastPathError where a layer is used unlike on the first samples.
        """
        loss, slow = self.losses[index], self.slow[index]
        fast = {} if len(slow) == len(self.state) else self._fast(index, fields)
        factors = fast | (self._sample_by_sample(loss, fields, slow) if slow else {})
        if missing := self.state.keys() - factors.keys():
            raise FastPathError(Decision(losses={index: frozenset(missing)}), f"no rule fits {min(missing)}")
        return factors

    def leave_to_reference(self, names: Mapping[int, frozenset[str]]) -> None:
        """Compute the parameters `names` one sample at a time, for each loss by its number."""
        for k, slow in names.items():
            self.slow[k] = [name for name in self.state if name in slow or name in self.slow[k]]

    def disagreeing(self, index: int, fields: Fields, sums: WeightedSums) -> frozenset[str]:
        """Parameters with a fast path whose `sums` of the loss `index` are not the gradients of the weighted sum.

        Args:
            index: The number of the loss.
            fields: The selected samples.
            sums: The weighted sums of their gradients.

        Returns:
            Names of parameters.
        """
        names = [name for name in self.state if name not in self.slow[index]]
        if not names:
            return frozenset()
        gradients = self._plain_gradients(self.losses[index], fields, names, sums.weights[0])
        return frozenset(sums.disagreeing(dict(zip(names, gradients, strict=True))))

    # -- one sample at a time -----------------------------------------------------------------------------------

    def _sample_by_sample(self, loss: Loss, fields: Fields, names: Sequence[str]) -> dict[str, Dense]:
        """The gradient of each sample's loss by plain reverse mode."""
        samples = [fields.select(slice(i, i + 1)) for i in range(len(fields.u))]
        gradients = [self._plain_gradients(loss, sample, names) for sample in samples]
        columns = zip(names, zip(*gradients, strict=True), strict=True)
        return {name: Dense(torch.stack([flat_gradient(g) for g in column])[None]) for name, column in columns}

    def _plain_gradients(
        self, loss: Loss, fields: Fields, names: Sequence[str], weights: Tensor | float = 1.0
    ) -> tuple[Tensor, ...]:
        """The gradients of the sum of `weights` [n] times the losses with respect to the parameters `names`."""
        state = {name: p.clone().requires_grad_() for name, p in self.state.items()}
        with torch.enable_grad():
            network = self._network(state, fields, self.jvp or jvp_by_double_backward)
            value = (fields.apply_weight(loss(fields, network)) * weights).sum()
            inputs = [state[name] for name in names]
            return torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)

    def _network(
        self,
        state: Mapping[str, Tensor],
        fields: Fields,
        jvp: Callable[..., Any],
        copies: Mapping[str, Tensor] = {},
        context: Callable[[Sequence[Condition]], AbstractContextManager[object]] = nullcontext,
    ) -> DifferentiableNetwork:
        """The network with the parameters of `state`, and `copies` [n, ...] of some, one for each sample.

        Each call is in a `context` of its inputs.
        """
        assert fields.context is not None

        def evaluate(x: Tensor, *others: Tensor | None) -> Tensor:
            points = len(x) // len(fields.u)  # a loss may evaluate several points for each sample
            repeated = {name: p if points == 1 else p.repeat_interleave(points, 0) for name, p in copies.items()}
            with context((x, *others)):
                return call(self.module, self.places, {**state, **repeated}, (x, *others))

        return DifferentiableNetwork(self.module, evaluate, fields.context.condition, jvp)

    # -- all samples at once ------------------------------------------------------------------------------------

    def _fast(self, index: int, fields: Fields) -> dict[str, Factors]:
        """As `_batched`. Raises FastPathError where that is no longer possible."""
        slow = self.slow[index]
        try:
            return self._batched(self.losses[index], fields, slow)
        except FastPathError as error:
            raise FastPathError(Decision(losses={index: error.decision.cotangents}), error.cause) from error

    def _batched(self, loss: Loss, fields: Fields, slow: Container[str] = ()) -> dict[str, Factors]:
        """The same from one backward pass, for the parameters that fast paths serve, except the `slow` ones."""
        n = len(fields.u)
        bare = {
            name: expand_over_samples(self.state[name], n, axes).requires_grad_() for name, axes in self.bare.items()
        }
        operations, idle = (
            {name: self.state[name].detach().requires_grad_() for name in sorted(names) if name not in slow}
            for names in (self.operations, self.idle)
        )
        # every layer passes on a copy of its output: a loss may overwrite what the engine's forward pass does not
        copied = self.layers.keys() | operations.keys()
        with record_uses(self.layers, copied, operations, of_loss=True) as recording, torch.enable_grad():
            state = {**self.state, **operations, **idle}
            network = self._network(state, fields, self.jvp or jvp_by_dual_numbers, bare, recording.of_operations)
            values = fields.apply_weight(loss(fields, network))
        uses = recording.uses
        fast = {layer for layer, own in self.own.items() if any(name not in slow for name in own.values())}
        expected = self.rows.setdefault(loss, rows_per_sample(uses, n))
        if unexpected := unexpected_layers(uses, n, expected, fast | operations.keys()):
            names = {name for layer in unexpected for name in self.own.get(layer, {"": layer}).values()}
            raise FastPathError(Decision(frozenset(names)), part_note(min(unexpected)))
        with_graph = reachable(values, idle)
        targets = [*(use.output for use in uses), *bare.values(), *with_graph.values()]
        gradients = torch.autograd.grad(values.sum(), targets, allow_unused=True, materialize_grads=True)
        ruled = self._ruled(recording, gradients, n, fast, operations)
        of_copies = dict(zip([*bare, *with_graph], gradients[len(uses) :], strict=True))
        unused = [name for name in idle if not (name in of_copies and of_copies[name].any())]
        return {
            **ruled,
            **{name: Dense(flat_gradient(of_copies[name][None], 2)) for name in bare},
            **{name: NoGradient(1, n, gradient_size(self.state[name]), values) for name in unused},
        }

    def _ruled(
        self,
        recording: Recording,
        gradients: Sequence[Tensor],
        n: int,
        fast: Container[str],
        operations: Mapping[str, Tensor],
    ) -> dict[str, Factors]:
        """The factors that follow from the `gradients` of recorded outputs, except where a rule does not fit."""
        parts: dict[str, list[Factors]] = defaultdict(list)
        failed = set(recording.refused)
        for use, g in zip(recording.uses, gradients, strict=False):
            if use.ruled is not None:
                try:
                    by_name = _operation_factors(use, g, n, operations)
                except (RuntimeError, ValueError, IndexError):
                    failed.update(use.ruled.all_names)
                    continue
                for name, factors in by_name.items():
                    parts[name] += factors
            if use.layer not in fast:
                continue
            layer = self.layers[use.layer]
            points = len(g) // n  # point k of every sample counts as a separate use
            for k in range(points):
                tangent = None if use.tangent is None else use.tangent[k::points]
                try:
                    by_parameter = _rule_factors(layer, use.input[k::points], tangent, g[None, k::points])
                except (RuntimeError, ValueError, IndexError):  # the layer is not what its rule expects
                    failed.update(self.own[use.layer].values())
                    break
                for local, name in self.own[use.layer].items():
                    if local in by_parameter and name not in self.operations | self.idle:
                        parts[name].append(by_parameter[local])
        return {
            name: sum_over_uses(uses_of, n, gradient_size(self.state[name]))
            for name, uses_of in parts.items()
            if name not in failed
        }

    def _slow_parameters(self, loss: Loss, fields: Fields) -> list[str]:
        """Parameters whose gradients from `_batched` disagree with those of `_sample_by_sample`."""
        reference = self._sample_by_sample(loss, fields, list(self.state))
        gradients = {name: factors.values[0].unbind() for name, factors in reference.items()}
        try:
            slow = disagreeing_parameters(self._batched(loss, fields).items(), gradients)
        except (RuntimeError, ValueError, IndexError):  # the network is not what its layers' rules expect
            return list(self.state)
        return [name for name in self.state if name in slow]


def _operation_factors(use: LayerUse, g: Tensor, n: int, leaves: Mapping[str, Tensor]) -> dict[str, list[Factors]]:
    """Factors [1, n, P] from the cotangents g of an operation's output; points and tokens are folded into its rows."""
    assert use.ruled is not None
    a, g = use.input if use.tangent is None else use.tangent, g[None]
    if use.ruled.of_copies:
        ((_, tensor),) = use.ruled.tensors.items()
        g = g.reshape(1, n, -1, *tensor.shape).sum(2)  # over the points of each sample
    else:
        a = a if len(a) == n else a.unflatten(0, (n, -1))
        g = g if g.shape[1] == n else g.unflatten(1, (n, -1))
    return use.ruled.by_parameter(a, g, leaves, of_tangent=use.tangent is not None)


def _rule_factors(module: nn.Module, a: Tensor, tangent: Tensor | None, g: Tensor) -> dict[str, Factors]:
    """The rule's factors for the cotangent g of y = f(a), or of y' = df/da a' if there is a tangent a', for a layer f.

    a and a' are [n, ...], g is [1, n, ...].
    """
    rule = rule_for(module)
    assert rule is not None
    if tangent is None:
        return rule(module, a, g)
    if rule in LINEAR_RULES:  # y' = W a', whatever the bias
        return {name: factors for name, factors in rule(module, tangent, g).items() if name != "bias"}
    # <g, y'> is the derivative of <g, f(a)> along a', so its gradient is the derivative of the rule's gradient
    derivatives = jvp(
        lambda point: {name: factors.dense(0, len(a)) for name, factors in rule(module, point, g).items()},
        (a,),
        (tangent,),
    )[1]
    return {name: Dense(values) for name, values in derivatives.items()}
