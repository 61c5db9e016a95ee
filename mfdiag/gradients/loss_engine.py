"""The general path: per-sample gradients of any loss, for estimators that are no cotangent of u(x_t, r, t).

The loss of a chunk is computed once with every use of every layer recorded. Samples do not mix, so the gradient of the
summed loss with respect to a layer's output holds each sample's own cotangent, and the layer's rule turns it into
factors as in the fast engine. Where the loss holds a directional derivative, the network runs on dual numbers
(y, y'): a layer that is linear in its input has y = W a and y' = W a', so that its gradient is g (x) a + g' (x) a'.
The slow, obvious twin takes the gradient of one sample's loss at a time; parameters on which the two disagree on a few
samples are left to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import jvp

from mfdiag.derivatives.differentiable_jvp import DifferentiableJvp, jvp_by_double_backward, jvp_by_dual_numbers
from mfdiag.fields.differentiable_network import DifferentiableNetwork, Loss
from mfdiag.fields.fields import Fields
from mfdiag.gradients.concatenated import Concatenated, sum_over_uses
from mfdiag.gradients.engine import Engine
from mfdiag.gradients.factors import Dense, Factors
from mfdiag.gradients.fast_engine import FastEngine, _expanded
from mfdiag.gradients.functional import call, hooked, parameter_places
from mfdiag.gradients.rules import convolution, linear, rule_for, same_convolution

__all__ = ["LossEngine"]


class _Use(NamedTuple):
    """One use of a layer while a loss was computed: its output y, or, on dual numbers, the tangent y' of that.

    `tangent` is that of the input, where `output` is y'.
    """

    layer: str
    input: Tensor
    tangent: Tensor | None
    output: Tensor


class LossEngine:
    """Factors of the per-sample gradients of losses; `engine` says which parameters have a fast way.

    `fields` hold a few samples on which each loss tries it; `say` receives a note where one cannot. `along` replaces
    exact derivatives where the network has none.
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
        self.names = {id(p): name for name, p in module.named_parameters()}
        self.fast = isinstance(engine, FastEngine)
        self.layers = engine.layers if isinstance(engine, FastEngine) else {}
        self.bare = engine.bare if isinstance(engine, FastEngine) else {}
        self.slow = [self._disagreeing(loss, fields) for loss in losses]
        if self.fast and (left := {name for slow in self.slow for name in slow}):
            say(f"{len(left)} parameters measured one sample at a time for some estimators, first {min(left)}.")

    def beside(self, factors: Iterator[tuple[str, Factors]], fields: Fields) -> Iterator[tuple[str, Factors]]:
        """`factors` of the cotangents, joined by parameter with those of each loss."""
        n = len(fields.u)
        own = [self.factors(k, fields) for k in range(len(self.losses))]
        for name, found in factors:
            yield name, Concatenated((found, *(loss.pop(name) for loss in own)), n, self.state[name].numel())

    def factors(self, which: int, fields: Fields) -> dict[str, Factors]:
        """Factors [1, n, ...] of every parameter for one of the losses."""
        loss, slow = self.losses[which], self.slow[which]
        found = {} if len(slow) == len(self.state) else self._at_once(loss, fields)
        return found | (self._one_by_one(loss, fields, slow) if slow else {})

    # -- one sample at a time -----------------------------------------------------------------------------------

    def _one_by_one(self, loss: Loss, fields: Fields, names: Sequence[str]) -> dict[str, Factors]:
        """The gradient of each sample's loss by plain reverse mode."""
        gradients = []
        for i in range(len(fields.u)):
            state = {name: p.clone().requires_grad_() for name, p in self.state.items()}
            one = fields.select(slice(i, i + 1))
            with torch.enable_grad():
                value = one.apply_weight(loss(one, self._network(state, one, self.jvp or jvp_by_double_backward))).sum()
                wanted = [state[name] for name in names]
                gradients.append(torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True))
        columns = zip(names, zip(*gradients, strict=True), strict=True)
        return {name: Dense(torch.stack([g.flatten() for g in parts])[None]) for name, parts in columns}

    def _network(
        self, state: Mapping[str, Tensor], fields: Fields, along: Callable[..., Any], copies: Mapping[str, Tensor] = {}
    ) -> DifferentiableNetwork:
        """The network with the parameters of `state`, and `copies` [n, ...] of some, one for each sample."""
        assert fields.context is not None

        def evaluate(x: Tensor, *others: Tensor | None) -> Tensor:
            each = len(x) // len(fields.u)
            own = {name: p if each == 1 else p.repeat_interleave(each, 0) for name, p in copies.items()}
            return call(self.module, self.places, {**state, **own}, (x, *others))

        return DifferentiableNetwork(self.module, evaluate, fields.context.labels, along)

    # -- all samples at once ------------------------------------------------------------------------------------

    def _at_once(self, loss: Loss, fields: Fields) -> dict[str, Factors]:
        n = len(fields.u)
        bare = {name: _expanded(self.state[name], n, axes).requires_grad_() for name, axes in self.bare.items()}
        with self._recorded() as uses, torch.enable_grad():
            values = fields.apply_weight(
                loss(fields, self._network(self.state, fields, self.jvp or jvp_by_dual_numbers, bare))
            )
        targets = [*(use.output for use in uses), *bare.values()]
        gradients = torch.autograd.grad(values.sum(), targets, allow_unused=True, materialize_grads=True)
        parts: dict[str, list[Factors]] = defaultdict(list)
        for use, g in zip(uses, gradients, strict=False):
            each = len(g) // n  # a loss may evaluate several points for a sample
            for k in range(each):
                tangent = None if use.tangent is None else use.tangent[k::each]
                made = _made(self.layers[use.layer], use.input[k::each], tangent, g[None, k::each])
                for local, p in self.layers[use.layer].named_parameters(recurse=False):
                    if local in made:
                        parts[self.names[id(p)]].append(made[local])
        found = {name: sum_over_uses(some, n, self.state[name].numel()) for name, some in parts.items()}
        own = zip(bare, gradients[len(uses) :], strict=True)
        return {**found, **{name: Dense(g.reshape(1, n, -1)) for name, g in own}}

    @contextmanager
    def _recorded(self) -> Iterator[list[_Use]]:
        """Records every use of every layer that has a rule, wherever gradients are wanted."""
        record: list[_Use] = []

        def noted(layer: str, input: Tensor, tangent: Tensor | None, output: Tensor) -> Tensor:
            output = output if output.requires_grad else output.detach().requires_grad_()
            record.append(_Use(layer, input.detach(), None if tangent is None else tangent.detach(), output))
            return output.clone()  # what follows may overwrite it

        def hook_for(layer: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
            def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
                if not torch.is_grad_enabled():
                    return out
                (a, da), (y, dy) = forward_ad.unpack_dual(args[0]), forward_ad.unpack_dual(out)
                y = noted(layer, a, None, y)
                if da is None or dy is None:
                    return y
                return forward_ad.make_dual(y, noted(layer, a, da, dy))

            return hook

        with hooked(self.layers, hook_for):
            yield record

    def _disagreeing(self, loss: Loss, fields: Fields) -> list[str]:
        """Parameters whose fast gradients are not the slow ones."""
        names, n = list(self.state), len(fields.u)
        if not self.fast:
            return names
        truth = self._one_by_one(loss, fields, names)
        tolerance = 1e-9 if fields.u.dtype == torch.float64 else 1e-3
        try:
            found = self._at_once(loss, fields)
            return [name for name in names if name not in found or not _close(found[name], truth[name], n, tolerance)]
        except (RuntimeError, ValueError, IndexError):  # the network is not what its layers' rules expect
            return names


def _made(module: nn.Module, a: Tensor, tangent: Tensor | None, g: Tensor) -> dict[str, Factors]:
    """The rule's factors for the cotangent of y = f(a), or of y' = df/da a', for a layer f."""
    rule = rule_for(module)
    assert rule is not None
    if tangent is None:
        return rule(module, a, g)
    if rule in (linear, convolution, same_convolution):  # y' = W a', whatever the bias
        made = rule(module, tangent, g)
        return {name: factors for name, factors in made.items() if name != "bias"}
    # <g, y'> is the derivative of <g, f(a)> along a', and so is its gradient of the rule's
    slope = jvp(
        lambda at: {name: made.dense(0, len(a)) for name, made in rule(module, at, g).items()}, (a,), (tangent,)
    )
    return {name: Dense(values) for name, values in slope[1].items()}


def _close(found: Factors, truth: Factors, samples: int, tolerance: float) -> bool:
    got, want = found.dense(0, samples), truth.dense(0, samples)
    return got.shape == want.shape and bool((got - want).norm() <= tolerance * (want.norm() + 1e-30))
