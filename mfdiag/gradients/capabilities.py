"""What a network allows an engine to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mfdiag.derivatives.forward_graph import CheckedJvp

__all__ = ["NetworkCapabilities"]


@dataclass(frozen=True)
class NetworkCapabilities:
    """What a network allows, as `find_capabilities` has tried on its first samples.

    Every parameter takes one of these paths: the rule of its layer, copies for each sample (`bare`), the operations
    that it enters, no gradient at all, or the reference.

    Attributes:
        layers: Layers whose rule serves at least one of their parameters.
        bare: Parameters outside of these layers that broadcast over the batch -> `axes` of `expand_over_samples`.
        fallback: Parameters left to the reference.
        operations: Parameters whose gradients follow from the operations that they enter (`parameter_uses.py`).
        idle: Parameters without a gradient on the first samples, for which every chunk proves it.
        overwritten: Layers whose output the network overwrites in place, so that they must pass on a copy.
        reversible: Whether double backward gives the right derivatives of the network.
        linearized: Whether layers may run as their linearization (`derivatives/linearized.py`).
        bytes_per_sample: Memory that one sample's recorded activations take.
        rows: By layer, rows that each of its uses takes and returns, divided by the samples. Every chunk must use the
            layer so. None during the trials.
        unproved: Parameters with a fast path whose gradient was zero on the first samples.
        selects_by_value: Whether the network may choose or order samples or tokens by their values.
        one_by_one: Whether the reference takes one sample at a time, because vmap is wrong for the network.
        checked_jvp: Derivatives by double backward at the first samples; None if not reversible.
    """

    layers: frozenset[str]
    bare: Mapping[str, int]
    fallback: frozenset[str]
    operations: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()
    overwritten: frozenset[str] = frozenset()
    reversible: bool = True
    linearized: bool = True
    bytes_per_sample: int = 0
    rows: Mapping[str, tuple[tuple[float, float], ...]] | None = None
    unproved: frozenset[str] = frozenset()
    selects_by_value: bool = False
    one_by_one: bool = False
    checked_jvp: CheckedJvp | None = None
