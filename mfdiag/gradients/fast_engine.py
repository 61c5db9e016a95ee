"""The fast engine: one recorded forward pass, one backward pass of activations per cotangent, factors from rules.

It forms no weight gradient and no per-sample gradient of a weight. Parameters that no fast path serves are left to the
reference.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from mfdiag.derivatives.attention import twice_differentiable
from mfdiag.derivatives.linearized import Linearized
from mfdiag.fields.inputs import Inputs
from mfdiag.gradients.capabilities import NetworkCapabilities
from mfdiag.gradients.concatenated import sum_over_uses
from mfdiag.gradients.engine_protocol import Engine
from mfdiag.gradients.factors import Dense, Factors, NoGradient
from mfdiag.gradients.functional import (
    call,
    expand_over_samples,
    flat_gradient,
    gradient_size,
    names_by_layer,
    parameter_places,
)
from mfdiag.gradients.recorder import LayerUse, RecordedForward, reachable, record_uses
from mfdiag.gradients.reference_engine import per_sample_gradients
from mfdiag.gradients.rules import rule_for
from mfdiag.gradients.running_check import Decision, FastPathError, part_note, unexpected_layers
from mfdiag.models.wrapper import prefix_of

__all__ = ["FastEngine", "OverwrittenOutputError"]


class OverwrittenOutputError(RuntimeError):
    """The network overwrites the output of `layers` in place, as ReLU(inplace=True) does: they must pass on a copy."""

    def __init__(self, layers: set[str]) -> None:
        super().__init__(f"outputs overwritten in place: {', '.join(sorted(layers))}")
        self.layers = layers


class FastEngine(Engine):
    """Factors by the paths that `capabilities` names for each parameter of `module`."""

    uses_rules = True

    def __init__(self, module: nn.Module, capabilities: NetworkCapabilities) -> None:
        self.module, self.capabilities = module, capabilities
        self.state = {name: p.detach() for name, p in module.named_parameters()}
        self.places = parameter_places(module)
        self.layers = {name: layer for name, layer in module.named_modules() if name in capabilities.layers}
        self.parameters = names_by_layer(module, self.layers)
        # whose uses must stay those of the first samples
        self.rows = {name: [*own.values()] for name, own in self.parameters.items()}
        self.rows |= {name: [name] for name in capabilities.operations}

    def forward_graph(self, inputs: Inputs) -> RecordedForward:
        """As `Engine` says. Raises OverwrittenOutputError where layers must pass on a copy, but do not."""
        x, r, t, labels = inputs
        reversible = self.capabilities.reversible
        x, t = (a.detach().requires_grad_(reversible) for a in (x, t))
        bare = {
            name: expand_over_samples(self.state[name], len(x), axes).requires_grad_()
            for name, axes in self.capabilities.bare.items()
        }
        operations, idle = (self._leaves(names) for names in (self.capabilities.operations, self.capabilities.idle))
        linearized: AbstractContextManager[object] = Linearized() if self.capabilities.linearized else nullcontext()
        with (
            torch.enable_grad(),
            twice_differentiable(reversible),
            linearized,
            record_uses(self.layers, self.capabilities.overwritten, operations) as recording,
            recording.of_operations((x, r, t, labels)),
        ):
            uses = recording.uses
            try:
                u = call(self.module, self.places, {**self.state, **bare, **operations, **idle}, (x, r, t, labels))
            except RuntimeError as error:
                if "leaf Variable" in str(error) and "in-place" in str(error):
                    raise OverwrittenOutputError({use.layer for use in uses if use.output.is_leaf}) from error
                raise
        graph = RecordedForward(
            u, (x, r, t, labels), uses, bare, reachable(u, idle), frozenset(recording.refused), operations
        )
        if graph.overwritten:
            raise OverwrittenOutputError(graph.overwritten)
        return graph

    def factors(
        self, inputs: Inputs, cotangents: Tensor, graph: RecordedForward | None = None
    ) -> Iterator[tuple[str, Factors]]:
        n, size = len(inputs[0]), len(cotangents)
        fallback = self.capabilities.fallback
        graph = graph or self.forward_graph(inputs)
        if self.capabilities.rows is not None:
            self._require_ruled(unexpected_layers(graph.uses, n, self.capabilities.rows, self.rows))
        self._require_served(graph.refused)
        gradients = graph.backward(cotangents)
        uses_left = Counter(name for use in graph.uses for name in self._names(use))
        parts: dict[str, list[Factors]] = defaultdict(list)
        for use, g in zip(graph.uses, gradients, strict=False):
            by_parameter = self._rule_factors(use, g, n, graph.operations)
            if not by_parameter and self.capabilities.rows is not None:
                self._require_ruled({use.layer})
            for name in self._names(use):
                if name in by_parameter:
                    parts[name] += by_parameter[name]
                uses_left[name] -= 1
                if not uses_left[name] and name in parts:
                    yield name, sum_over_uses(parts.pop(name), n, size * self.state[name].numel())
        for name, gradient in zip(graph.bare, gradients, strict=False):
            yield name, Dense(flat_gradient(gradient, 2))
        self._require_served({name for name, gradient in zip(graph.idle, gradients, strict=False) if gradient.any()})
        for name in sorted(self.capabilities.idle):
            yield name, NoGradient(size, n, gradient_size(self.state[name]), cotangents)
        if fallback:
            with torch.no_grad():
                one_by_one = self.capabilities.one_by_one
                rest = per_sample_gradients(self.module, inputs, cotangents, sorted(fallback), one_by_one=one_by_one)
            for name, values in rest.items():
                yield name, Dense(flat_gradient(values, 2))

    def left_to_reference(self, names: frozenset[str]) -> FastEngine:
        """The same engine with the parameters `names` left to the reference."""
        before = self.capabilities
        fallback = before.fallback | names
        bare = {name: axes for name, axes in before.bare.items() if name not in fallback}
        operations, idle, unproved = before.operations - names, before.idle - names, before.unproved - names
        layers = frozenset(name for name, own in self.parameters.items() if set(own.values()) - fallback - operations)
        changed = replace(
            before,
            layers=layers,
            bare=bare,
            fallback=fallback,
            operations=operations,
            idle=idle,
            unproved=unproved,
        )
        return FastEngine(self.module, changed)

    def _leaves(self, names: Iterable[str]) -> dict[str, Tensor]:
        return {name: self.state[name].detach().requires_grad_() for name in sorted(names)}

    def _names(self, use: LayerUse) -> list[str]:
        """The parameters whose gradients a use gives."""
        if use.ruled is not None:
            return sorted(use.ruled.all_names)
        elsewhere = self.capabilities.fallback | self.capabilities.operations | self.capabilities.idle
        return [name for name in self.parameters[use.layer].values() if name not in elsewhere]

    def _require_ruled(self, unexpected: set[str]) -> None:
        """FastPathError where layers are `unexpected`."""
        if unexpected:
            names = {name for layer in unexpected for name in self.rows[layer]}
            raise FastPathError(Decision(frozenset(names)), part_note(min(unexpected)))

    def _require_served(self, names: Collection[str]) -> None:
        """FastPathError where parameters `names` have no fast path after all."""
        if names and self.capabilities.rows is not None:
            first = min(names).removeprefix(prefix_of(self.module))
            raise FastPathError(Decision(frozenset(names)), f"{first} is used unlike on the first samples")

    def _rule_factors(
        self, use: LayerUse, g: Tensor, n: int, operations: Mapping[str, Tensor]
    ) -> dict[str, list[Factors]]:
        """The rule's factors for g [C, n, ...] by parameter; none where the rule does not fit the layer's use."""
        a = use.input
        try:
            if len(a) != n and not (use.ruled is not None and use.ruled.of_copies):
                a = a.unflatten(0, (n, -1))  # tokens are folded into the batch axis, sample by sample
            if g.shape[1] != n:
                g = g.unflatten(1, (n, -1))
            if use.ruled is not None:
                return use.ruled.by_parameter(a, g, operations)
            layer = self.layers[use.layer]
            rule = rule_for(layer)
            assert rule is not None
            own = self.parameters[use.layer]
            return {own[local]: [factors] for local, factors in rule(layer, a, g).items() if local in own}
        except (RuntimeError, ValueError, IndexError):
            return {}
