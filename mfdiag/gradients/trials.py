"""Finds out what a network allows, by trying it on a few samples.

Each trial runs the fast engine with some capabilities and compares its gradients with those of single samples. What
disagrees is left to the reference, so a wrong guess of a layer's rule or of a parameter's broadcast costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from mfdiag.errors import NETWORK_ERRORS
from mfdiag.fields.inputs import Inputs
from mfdiag.gradients.agreement import disagreeing_parameters
from mfdiag.gradients.capabilities import NetworkCapabilities
from mfdiag.gradients.fast_engine import FastEngine, OverwrittenOutputError
from mfdiag.gradients.functional import names_by_layer
from mfdiag.gradients.recorder import RecordedForward
from mfdiag.gradients.rules import is_guess, rule_for
from mfdiag.gradients.running_check import rows_per_sample, selects_by_value

__all__ = ["find_capabilities"]

_BROADCASTS = (0, 1, 2, 3)  # `axes` of `expand_over_samples` to try for a bare parameter


def find_capabilities(
    module: nn.Module, inputs: Inputs, cotangents: Tensor, reference: Mapping[str, Sequence[Tensor]]
) -> NetworkCapabilities:
    """Try which fast paths a network allows.

    Args:
        module: The network, u(x, r, t, labels).
        inputs: The few samples to try on.
        cotangents: One cotangent, [1, n, *shape].
        reference: Every parameter's name -> its gradients at these samples and cotangents, n tensors of its shape.

    Returns:
        What the network allows. Every parameter has a path whose gradients agree with `reference`.
    """
    trials = _Trials(module, inputs, cotangents, reference)
    shapes = {name: p.shape for name, p in module.named_parameters()}
    layers = {name: layer for name, layer in module.named_modules() if rule_for(layer) is not None}
    parameters = {layer: set(own.values()) for layer, own in names_by_layer(module, layers).items()}
    unruled = frozenset(shapes).difference(*parameters.values())

    # a parameter [1, ...] usually broadcasts without further axes
    bare = {name: 0 for name in sorted(unruled) if shapes[name][:1] == (1,)}
    capabilities = NetworkCapabilities(frozenset(layers), bare, unruled - bare.keys())
    capabilities, graph = trials.derivative(capabilities)
    wrong = trials.disagreeing(capabilities, graph)
    if wrong & capabilities.bare.keys():
        # the copies may have changed u itself, and so its derivative: try again without them
        capabilities, graph = trials.derivative(_with_bare(capabilities, {}))
        wrong = trials.disagreeing(capabilities, graph)

    # where these samples have no gradient, nothing distinguishes a right guess from a wrong one
    guessed = {name for layer in layers if is_guess(layers[layer]) for name in parameters[layer]}
    zero = frozenset(name for name in shapes if not any(gradient.any() for gradient in reference[name]))
    undecided = zero & (guessed | unruled)

    for name in sorted(capabilities.fallback - undecided):
        for axes in _BROADCASTS:
            attempt = _with_bare(capabilities, {**capabilities.bare, name: axes})
            if name not in trials.disagreeing(attempt):
                capabilities = attempt
                break

    fallback = capabilities.fallback | (wrong | undecided & guessed) - capabilities.bare.keys()
    capabilities = _with_operations(
        replace(capabilities, fallback=frozenset(fallback - zero), idle=frozenset(fallback & zero)),
        frozenset(),
        parameters,
    )
    if capabilities.fallback:
        capabilities = trials.operations(capabilities, parameters)
    fallback = capabilities.fallback | capabilities.idle
    return replace(
        capabilities,
        overwritten=frozenset(trials.overwritten),
        bytes_per_sample=trials.bytes_per_sample,
        rows=trials.rows,
        unproved=zero - fallback,
        selects_by_value=selects_by_value(module, inputs),
    )


def _with_operations(
    capabilities: NetworkCapabilities, operations: frozenset[str], parameters: Mapping[str, set[str]]
) -> NetworkCapabilities:
    """The same with some of the fallback's parameters served by operations, and no layer whose rule serves none."""
    others = capabilities.fallback | capabilities.idle | capabilities.operations
    layers = frozenset(name for name in capabilities.layers if parameters[name] - others)
    fallback = (capabilities.fallback | capabilities.operations) - operations
    return replace(capabilities, layers=layers, operations=operations, fallback=fallback)


def _with_bare(capabilities: NetworkCapabilities, bare: Mapping[str, int]) -> NetworkCapabilities:
    """The same with other bare parameters; those that are no longer bare fall back to the reference."""
    unruled = capabilities.fallback | capabilities.bare.keys()
    return replace(capabilities, bare=bare, fallback=unruled - bare.keys())


class _Trials:
    """Runs the fast engine on the first samples. What the trials learn about overwritten outputs holds for all."""

    def __init__(
        self, module: nn.Module, inputs: Inputs, cotangents: Tensor, reference: Mapping[str, Sequence[Tensor]]
    ) -> None:
        self.module, self.inputs, self.cotangents, self.reference = module, inputs, cotangents, reference
        self.overwritten: set[str] = set()
        self.bytes_per_sample = 0  # of the latest forward pass
        self.rows: dict[str, tuple[tuple[float, float], ...]] = {}  # likewise

    def derivative(self, capabilities: NetworkCapabilities) -> tuple[NetworkCapabilities, RecordedForward | None]:
        """Check double backward with as much of `capabilities` as the network allows: no copies, then no linearization.

        Returns what was left of `capabilities`, and the forward pass if double backward is right.
        """
        while True:
            try:
                graph = self._forward(self._engine(capabilities))
                checked = graph.check_jvp()
                capabilities = replace(capabilities, checked_jvp=checked, reversible=checked is not None)
                return capabilities, graph if capabilities.reversible else None
            except NETWORK_ERRORS as error:
                if self._learn_from(error):
                    continue
                if capabilities.bare:
                    capabilities = _with_bare(capabilities, {})  # some may not broadcast so: tried one by one later
                elif capabilities.linearized:
                    capabilities = replace(capabilities, linearized=False)  # the network may overwrite what they save
                else:
                    return replace(capabilities, checked_jvp=None, reversible=False), None

    def disagreeing(self, capabilities: NetworkCapabilities, graph: RecordedForward | None = None) -> set[str]:
        """Parameters whose gradients disagree with the reference; all of them where the network refuses."""
        while True:
            try:
                engine = self._engine(capabilities)
                graph = graph or self._forward(engine)
                return disagreeing_parameters(engine.factors(self.inputs, self.cotangents, graph), self.reference)
            except NETWORK_ERRORS as error:
                if not self._learn_from(error):
                    return set(self.reference)
                graph = None

    def operations(self, capabilities: NetworkCapabilities, parameters: Mapping[str, set[str]]) -> NetworkCapabilities:
        """Serve as much of the fallback as possible by the operations that its parameters enter.

        Derivatives must stay right: where they do not, nothing is changed.
        """
        beside = {name.rpartition(".")[0] for name in capabilities.fallback}
        joined = {name: axes for name, axes in capabilities.bare.items() if name.rpartition(".")[0] not in beside}
        if joined.keys() != capabilities.bare.keys():
            # a function that is written out has its own places for all parameters of its layer
            attempt = self._operations(_with_bare(capabilities, joined), parameters)
            if not attempt.fallback:
                return attempt
        return self._operations(capabilities, parameters)

    def _operations(self, capabilities: NetworkCapabilities, parameters: Mapping[str, set[str]]) -> NetworkCapabilities:
        operations = frozenset(capabilities.fallback)
        while operations:
            attempt = _with_operations(capabilities, operations, parameters)
            wrong = self.disagreeing(attempt) & operations
            if not wrong:
                break
            operations -= wrong
        attempt = _with_operations(capabilities, operations, parameters)
        graph = self._forward(self._engine(attempt))
        if operations and capabilities.reversible and graph.check_jvp() is None:
            attempt = capabilities
            self._forward(self._engine(attempt))
        return attempt

    def _engine(self, capabilities: NetworkCapabilities) -> FastEngine:
        return FastEngine(self.module, replace(capabilities, overwritten=frozenset(self.overwritten)))

    def _forward(self, engine: FastEngine) -> RecordedForward:
        graph = engine.forward_graph(self.inputs)
        self.bytes_per_sample = graph.bytes_per_sample
        self.rows = rows_per_sample(graph.uses, len(self.inputs[0]))
        return graph

    def _learn_from(self, error: Exception) -> bool:
        """Whether the error shows outputs that were not known to be overwritten, so that another try may succeed."""
        layers = error.layers if isinstance(error, OverwrittenOutputError) else set()
        new = layers - self.overwritten
        self.overwritten |= new
        return bool(new)
