"""Checks of the fast paths on the samples that are measured, not on the first ones alone.

Two things show that a path does not hold. A layer is called on another number of rows than on the first samples; every
chunk is checked for that. Or the per-sample gradients of a chunk, added with random weights, are not the gradient of
the sum of its samples with the same weights. The weights matter: gradients that were given to the wrong samples have
the right plain sum. Parameters that fail are left to the reference, and the pass restarts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mfdiag.fields.inputs import Inputs
from mfdiag.gradients.capabilities import NetworkCapabilities
from mfdiag.gradients.factors import Factors
from mfdiag.gradients.functional import flat_gradient
from mfdiag.gradients.recorder import LayerUse

__all__ = [
    "Decision",
    "FastPathError",
    "Sums",
    "WeightedSums",
    "check_weights",
    "part_note",
    "rows_per_sample",
    "selects_by_value",
    "unexpected_layers",
]

_CHUNKS = 16  # one chunk in so many is checked,
_EVERY = 16  # and one of so many of its samples, which costs 1 % of a DiT's pass
_SEED = 0x51695
_TOLERANCE = {torch.float64: (1e-9, 1e-12)}  # relative to the parameter's gradient, and to that of all parameters
_TOLERANCE_OTHERWISE = (1e-3, 1e-6)
_SELECTING = (  # starts of names of functions through which rows can be chosen or ordered by values
    "index_", "gather", "scatter", "masked_s", "nonzero", "argwhere", "sort", "argsort", "topk", "take", "item",
    "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__",
)  # fmt: skip


@dataclass(frozen=True)
class Decision:
    """Parameters whose fast path failed on the samples of a pass, and which the reference computes instead.

    Attributes:
        cotangents: For the cotangents of u.
        losses: For each loss by its number.
    """

    cotangents: frozenset[str] = frozenset()
    losses: Mapping[int, frozenset[str]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All these parameters, sorted."""
        return sorted(self.cotangents.union(*self.losses.values()))

    def __bool__(self) -> bool:
        return bool(self.cotangents or any(self.losses.values()))

    def __or__(self, other: Decision) -> Decision:
        losses = {
            k: self.losses.get(k, frozenset()) | other.losses.get(k, frozenset())
            for k in {**self.losses, **other.losses}
        }
        return Decision(self.cotangents | other.cotangents, losses)

    def state(self) -> dict[str, Any]:
        """The decision in a form that `torch.load(weights_only=True)` accepts."""
        return {"cotangents": sorted(self.cotangents), "losses": {k: sorted(names) for k, names in self.losses.items()}}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Decision:
        """The decision that `state` describes."""
        return cls(frozenset(state["cotangents"]), {k: frozenset(names) for k, names in state["losses"].items()})


class FastPathError(Exception):
    """Fast paths that do not hold on a chunk: `decision` has the parameters concerned, `cause` says why."""

    def __init__(self, decision: Decision, cause: str) -> None:
        super().__init__(decision, cause)
        self.decision, self.cause = decision, cause

    def __str__(self) -> str:
        return self.cause


def part_note(layer: str) -> str:
    """Why the parameters of `layer`, used on other rows than at first, have no fast path."""
    return f"{layer} is called on a part of the samples or tokens"


def rows_per_sample(uses: Iterable[LayerUse], n: int) -> dict[str, tuple[tuple[float, float], ...]]:
    """Count the rows that each use of each layer takes and returns.

    Args:
        uses: The uses of a forward pass.
        n: Its samples.

    Returns:
        By layer, the two numbers of each of its uses, divided by n.
    """
    rows: dict[str, tuple[tuple[float, float], ...]] = {}
    for use in uses:
        taken, returned = (len(a) / n if a.ndim else 0.0 for a in (use.input, use.output))
        rows[use.layer] = (*rows.get(use.layer, ()), (taken, returned))
    return rows


def unexpected_layers(
    uses: Iterable[LayerUse], n: int, expected: Mapping[str, tuple[tuple[float, float], ...]], layers: Iterable[str]
) -> set[str]:
    """Find the layers that a chunk uses unlike the first samples.

    Args:
        uses: The chunk's uses.
        n: The chunk's samples.
        expected: `rows_per_sample` on the first samples.
        layers: The layers that must be used as expected.

    Returns:
        Layers with another number of uses, or of rows for each sample.
    """
    actual = rows_per_sample(uses, n)
    return {layer for layer in layers if actual.get(layer, ()) != expected.get(layer, ())}


class _SelectionDetector(TorchFunctionMode):
    """Sees whether a function chooses or orders rows by values, or Python reads one."""

    seen = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            self.seen |= any(isinstance(part, Tensor | list | np.ndarray) for part in index)
        else:
            self.seen |= name.startswith(_SELECTING) or (name == "where" and len(args) == 1)
        return func(*args, **(kwargs or {}))


def selects_by_value(module: nn.Module, inputs: Inputs) -> bool:
    """Whether a network may give a layer samples or tokens chosen or ordered by their values, as routing does.

    Args:
        module: The network.
        inputs: A few samples.

    Returns:
        Whether a call on these samples selects by value or cannot be seen.
    """
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        return True  # what cannot be seen is checked
    detector = _SelectionDetector()
    try:
        with torch.no_grad(), detector:
            module(*inputs)
    except (RuntimeError, TypeError, NotImplementedError):
        return True
    return detector.seen


class WeightedSums:
    """Sums of per-sample gradients [C, n, P] with random `weights` [C, n], by parameter, as the factors pass by."""

    def __init__(self, selection: slice, weights: Tensor) -> None:
        self.selection, self.weights = selection, weights
        self.sums: dict[str, Tensor] = {}

    def watch(self, factors: Iterable[tuple[str, Factors]]) -> Iterator[tuple[str, Factors]]:
        """Pass on `factors`, and add up those of the selected samples."""
        for name, gradients in factors:
            self.sums[name] = gradients.combination(self.selection, self.weights)
            yield name, gradients

    def disagreeing(self, expected: Mapping[str, Tensor]) -> set[str]:
        """Parameters whose sums are not the gradients of the weighted sum, `expected`, of the parameters' shapes."""
        flat = {name: flat_gradient(gradient).flatten() for name, gradient in expected.items()}
        norms = {name: gradient.norm() for name, gradient in flat.items()}
        whole = torch.stack(list(norms.values())).norm()
        wrong = set()
        for name, gradient in flat.items():
            relative, rounding = _TOLERANCE.get(gradient.dtype, _TOLERANCE_OTHERWISE)
            actual = self.sums.get(name)
            if actual is None or not torch.dist(actual, gradient) <= relative * norms[name] + rounding * whole:
                wrong.add(name)
        return wrong


class Sums:
    """Which samples of which chunks are checked. The choice depends on the chunk's position alone.

    Every chunk and every sample is checked where the network selects by value. Otherwise the first chunk of a run and a
    random one in sixteen are, and those in which a parameter first has a gradient that had none on the first samples.
    """

    def __init__(self, capabilities: NetworkCapabilities) -> None:
        self.always, self.unproved = capabilities.selects_by_value, set(capabilities.unproved)
        self._first = True

    def due(self, position: int) -> bool:
        """Whether the chunk that starts at `position` is checked, whatever its gradients."""
        first, self._first = self._first, False
        return first or self.always or np.random.default_rng((_SEED, position)).random() < 1 / _CHUNKS

    def selection(self, position: int, n: int) -> slice:
        """The samples to check in the chunk of n samples at `position`."""
        step = 1 if self.always else min(_EVERY, n)
        return slice(int(np.random.default_rng((_SEED, position, 1)).integers(step)), None, step)


def check_weights(position: int, count: int, like: Tensor) -> Tensor:
    """Draw weights for a check, from a generator of its own.

    They are normal, because signs could cancel: two proportional cotangents of one sample leave nothing to compare.

    Args:
        position: Where the chunk starts.
        count: The number of the group of gradients: 0 for cotangents, then the losses.
        like: Cotangents [C, m, *shape] of the m selected samples.

    Returns:
        Independent standard normal numbers, [C, m].
    """
    generator = torch.Generator().manual_seed(_SEED + 1009 * position + count)
    return torch.randn(like.shape[:2], generator=generator, dtype=torch.float64).to(like)
