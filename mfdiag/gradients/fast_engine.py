"""The fast engine: one hooked forward, one backward of activations per cotangent, factors from the layers' rules.

No weight gradient and no per-sample gradient of a weight is formed here. Prepared once per model: every parameter
gets a way (a layer's rule, a bare parameter expanded over the samples, or the reference), and on a few samples each
is compared with the reference; a way that disagrees is replaced by the reference, and said so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from mfdiag.derivatives.attention import twice_differentiable
from mfdiag.derivatives.forward_graph import CheckedJvp, ForwardGraph, LayerUse
from mfdiag.derivatives.linearised import Linearised
from mfdiag.fields.inputs import Inputs
from mfdiag.gradients.concatenated import sum_over_uses
from mfdiag.gradients.factors import Dense, Factors
from mfdiag.gradients.functional import call, hooked, parameter_places
from mfdiag.gradients.reference_engine import per_sample_gradients
from mfdiag.gradients.rules import is_guess, rule_for

__all__ = ["FastEngine"]

_LEADING = (0, 1, 2, 3)  # how many axes of size one a bare parameter may need in front of its own


class FastEngine:
    """Factors of every parameter's per-sample gradients, cotangent by cotangent over one hooked forward.

    `truth` are the true per-sample gradients for `inputs` (a few samples) and `cotangents`; `say` receives
    each note once (parameters left to the reference).
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Inputs,
        cotangents: Tensor,
        truth: dict[str, tuple[Tensor, ...]],
        say: Callable[[str], None],
    ) -> None:
        self.module = module
        self.state = {k: p.detach() for k, p in module.named_parameters()}
        self.names = {id(p): k for k, p in module.named_parameters()}
        self.places = parameter_places(module)
        self.layers = {k: m for k, m in module.named_modules() if rule_for(m) is not None}
        self.parameters = {  # of each layer: name within it -> name within the model
            k: {local: self.names[id(p)] for local, p in m.named_parameters(recurse=False)}
            for k, m in self.layers.items()
        }
        ruled = {name for names in self.parameters.values() for name in names.values()}
        self.bare: dict[str, int] = {}
        self.fallback: set[str] = set(self.state) - ruled
        self._copied: set[str] = set()  # layers whose output is overwritten by what follows
        self._leaves: set[str] = set()  # layers before which nothing needs a gradient
        self.bytes_per_sample = 0
        self.reversible = True  # derivatives can be had by differentiating the backward pass
        self.checked_jvp: CheckedJvp | None = None
        self.linearised: AbstractContextManager[object] = Linearised()
        self._prepare(inputs, cotangents, truth, say)

    # -- one chunk ----------------------------------------------------------------------------------------------

    def forward_graph(self, inputs: Inputs) -> ForwardGraph:
        """The forward pass that derivatives and factors of these inputs share."""
        x, r, t, labels = inputs
        x, t = (a.detach().requires_grad_(self.reversible) for a in (x, t))
        bare = {k: _expanded(self.state[k], len(x), axes).requires_grad_() for k, axes in self.bare.items()}
        with self._hooks() as uses, torch.enable_grad(), twice_differentiable(self.reversible), self.linearised:
            u = self._forward({**self.state, **bare}, (x, r, t, labels))
        changed = {use.layer for use in uses if use.output._version != use.version}
        if changed:
            raise _ChangedInPlaceError(changed)
        self.bytes_per_sample = sum(use.output.numel() * use.output.element_size() for use in uses) // len(x)
        return ForwardGraph(u, x, t, uses, bare)

    def factors(
        self, inputs: Inputs, cotangents: Tensor, graph: ForwardGraph | None = None
    ) -> Iterator[tuple[str, Factors]]:
        """(parameter name, factors) for each parameter, from cotangents [C, n, *shape] and `forward_graph(inputs)`."""
        n = len(inputs[0])
        graph = graph or self.forward_graph(inputs)
        gradients = graph.backward(cotangents)
        remaining = Counter(name for use in graph.uses for name in self.parameters[use.layer].values())
        found: dict[str, list[Factors]] = defaultdict(list)
        for use, g in zip(graph.uses, gradients, strict=False):
            made = self._made(use.layer, use.input, g, n)
            for local, name in self.parameters[use.layer].items():
                if name not in self.fallback and made:
                    found[name].append(made[local])
                remaining[name] -= 1
                if not remaining[name] and name in found:
                    yield name, sum_over_uses(found.pop(name), n, len(cotangents) * self.state[name].numel())
        for name, gradient in zip(graph.bare, gradients, strict=False):
            yield name, Dense(gradient[..., None].flatten(2))
        if self.fallback:
            with torch.no_grad():
                rest = per_sample_gradients(self.module, inputs, cotangents, sorted(self.fallback))
            for name, values in rest.items():
                yield name, Dense(values[..., None].flatten(2))

    def _made(self, layer: str, a: Tensor, g: Tensor, n: int) -> dict[str, Factors]:
        """The rule's factors; nothing where the layer is not used as its rule expects (found out in `_prepare`)."""
        rule = rule_for(self.layers[layer])
        assert rule is not None
        try:
            if len(a) != n:  # tokens folded into the batch axis, sample by sample
                a, g = a.unflatten(0, (n, -1)), g.unflatten(1, (n, -1))
            return rule(self.layers[layer], a, g)
        except (RuntimeError, ValueError, IndexError):
            return {}

    def _forward(self, tensors: dict[str, Tensor], inputs: Inputs) -> Tensor:
        try:
            return call(self.module, self.places, tensors, inputs)
        except RuntimeError as error:
            if "leaf Variable" in str(error) and "in-place" in str(error):
                raise _ChangedInPlaceError(self._leaves) from error
            raise

    @contextmanager
    def _hooks(self) -> Iterator[list[LayerUse]]:
        """Records every use of every layer that has a rule."""
        record: list[LayerUse] = []

        def hook_for(layer: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
            def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
                if not isinstance(out, Tensor):  # of a class of its own, which is left to the reference
                    return out
                if not out.requires_grad:
                    out.requires_grad_()
                    self._leaves.add(layer)
                taken = args[0].detach() if args else out.new_empty(0)  # a keyword call ends with the reference
                record.append(LayerUse(layer, taken, out, out._version))
                return out.clone() if layer in self._copied else out

            return hook

        with hooked(self.layers, hook_for):
            yield record

    # -- prepared once ------------------------------------------------------------------------------------------

    def _prepare(
        self,
        inputs: Inputs,
        cotangents: Tensor,
        truth: dict[str, tuple[Tensor, ...]],
        say: Callable[[str], None],
    ) -> None:
        unruled = sorted(self.fallback)
        leading = {k: 0 for k in unruled if self.state[k].shape[:1] == (1,)}  # [1, ...] usually broadcasts as it is
        self.bare = leading
        self.checked_jvp, graph = self._tried(inputs)
        self.reversible = self.checked_jvp is not None
        self.fallback = set(unruled) - set(self.bare)
        guessed = {n for k, m in self.layers.items() if is_guess(m) for n in self.parameters[k].values()}
        # without a gradient on these samples nothing tells a right guess from a wrong one
        untold = {n for n in guessed.union(unruled) if not any(part.any() for part in truth[n])}
        wrong = self._disagreeing(inputs, cotangents, truth, graph)
        if wrong & set(self.bare):
            self.bare, self.fallback = {}, set(unruled)
            self.checked_jvp, graph = self._tried(inputs)  # a copy for each sample may have changed u itself
            self.reversible = self.checked_jvp is not None
            wrong = self._disagreeing(inputs, cotangents, truth, graph)
        for name in sorted(self.fallback):  # find the broadcast of a bare parameter that the reference confirms
            for axes in () if name in untold else _LEADING:
                self.bare[name] = axes
                self.fallback.discard(name)
                if name not in self._disagreeing(inputs, cotangents, truth):
                    break
                del self.bare[name]
                self.fallback.add(name)
        self.fallback |= (wrong | untold & guessed) - set(self.bare)
        self.layers = {k: m for k, m in self.layers.items() if set(self.parameters[k].values()) - self.fallback}
        if self.fallback:
            some = ", ".join(sorted(self.fallback)[:4]) + (", ..." if len(self.fallback) > 4 else "")
            count = len(self.fallback)
            say(f"{count} parameter{'s' * (count > 1)} without a fast rule, measured by the reference engine: {some}.")

    def _tried(self, inputs: Inputs) -> tuple[CheckedJvp | None, ForwardGraph | None]:
        """A derivative by the model's backward pass, where that can be differentiated, and rightly; and that pass."""
        while True:
            try:
                graph = self.forward_graph(inputs)
                tried = graph.check_jvp()
                return tried, None if tried is None else graph
            except _ChangedInPlaceError as change:
                self._copied |= change.layers
            except (RuntimeError, NotImplementedError):
                if self.bare:
                    self.bare = {}  # one may not broadcast so: found out one by one
                elif not isinstance(self.linearised, Linearised):
                    return None, None
                else:
                    self.linearised = nullcontext()  # the network may overwrite what these layers keep

    def _disagreeing(
        self,
        inputs: Inputs,
        cotangents: Tensor,
        truth: dict[str, tuple[Tensor, ...]],
        graph: ForwardGraph | None = None,
    ) -> set[str]:
        """Parameters whose factors, multiplied out, are not the reference's gradients."""
        n, agreed = len(inputs[0]), set()
        tolerance = 1e-9 if inputs[0].dtype == torch.float64 else 1e-3
        while True:
            try:
                for name, factors in self.factors(inputs, cotangents, graph):
                    got, want = factors.dense(0, n)[0], [part.flatten() for part in truth[name]]
                    if got.shape == (n, len(want[0])):
                        off = torch.stack([torch.dist(*pair) for pair in zip(got, want, strict=True)]).norm()
                        if off <= tolerance * get_total_norm(want):
                            agreed.add(name)
                return set(self.state) - agreed
            except _ChangedInPlaceError as change:
                self._copied |= change.layers
                graph = None
            except (RuntimeError, ValueError, IndexError, AssertionError):  # a bare parameter does not broadcast so
                return set(self.state)


class _ChangedInPlaceError(RuntimeError):
    """A layer's output was overwritten (ReLU(inplace=True)): that layer must hand on a copy."""

    def __init__(self, layers: set[str]) -> None:
        super().__init__(", ".join(layers))
        self.layers = layers


def _expanded(parameter: Tensor, n: int, axes: int) -> Tensor:
    """One copy per sample of a bare parameter that broadcasts over the batch.

    [1, *rest] -> [n, *rest] for `axes` 0, else [*shape] -> [n, 1 * (axes - 1), *shape].
    """
    if axes == 0 and parameter.shape[:1] == (1,):
        return parameter.expand(n, *parameter.shape[1:]).clone()
    ones = [1] * max(axes - 1, 0)
    return parameter.view(1, *ones, *parameter.shape).expand(n, *ones, *parameter.shape).clone()
