"""What a network is conditioned on besides times: labels, and arrays by name such as observations, text or a mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Condition", "Conditions", "labels_of", "map_condition", "move_condition", "null_of", "with_labels"]


@dataclass(frozen=True)
class Conditions:
    """Labels and arrays of n samples. It is indexed, moved and cast like one tensor.

    Attributes:
        labels: Labels [n], [n, 4] if the network takes its guidance as an input, or None.
        arrays: Arrays [n, ...] by name. Integers and booleans keep their type.
        dropped: Which samples [n] get the null value of every array in place of their own; None for no sample.
    """

    labels: Tensor | None
    arrays: Mapping[str, Tensor]
    dropped: Tensor | None = None

    def __getitem__(self, samples: Any) -> Conditions:
        return self.map(lambda values: values[samples])

    def to(self, like: Tensor) -> Conditions:
        """The same on the device of `like`; floating-point arrays also in its dtype."""
        return self.map(lambda v: v.to(like) if v.is_floating_point() else v.to(like.device))

    def map(self, function: Callable[[Tensor], Tensor]) -> Conditions:
        """`function` of every tensor."""
        return self.with_tensors({name: function(values) for name, values in self.tensors.items()})

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor; those of labels and drops have names that no array has."""
        own = {".labels": self.labels, ".dropped": self.dropped}
        return {name: values for name, values in own.items() if values is not None} | dict(self.arrays)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Conditions:
        """The conditions with other values of `tensors`."""
        arrays = {name: tensors[name] for name in self.arrays}
        return Conditions(tensors.get(".labels"), arrays, tensors.get(".dropped"))


Condition = Tensor | Conditions | None
"""What a network receives after x, r and t: labels [n] or [n, 4], labels with arrays by name, or nothing."""


def map_condition(condition: Condition, function: Callable[[Tensor], Tensor]) -> Condition:
    """`function` of every tensor of a condition."""
    if condition is None:
        return None
    return condition.map(function) if isinstance(condition, Conditions) else function(condition)


def labels_of(condition: Condition) -> Tensor | None:
    """The labels of a condition."""
    return condition.labels if isinstance(condition, Conditions) else condition


def with_labels(condition: Condition, labels: Tensor | None) -> Condition:
    """The condition with other labels."""
    return replace(condition, labels=labels) if isinstance(condition, Conditions) else labels


def move_condition(condition: Condition, like: Tensor) -> Condition:
    """The condition on the device of `like`. Floating-point arrays by name get its dtype, labels keep theirs."""
    if isinstance(condition, Conditions):
        return condition.to(like)
    return None if condition is None else condition.to(like.device)


def null_of(condition: Condition, label: int) -> Condition:
    """The null condition of every sample: the null label, and the null value of every array."""
    labels = labels_of(condition)
    null = None if labels is None else labels.clone()
    if null is not None:
        (null if null.ndim == 1 else null[:, 0]).fill_(label)
    if not isinstance(condition, Conditions):
        return null
    first = next(iter(condition.tensors.values()))
    return Conditions(null, condition.arrays, torch.ones(len(first), dtype=torch.bool, device=first.device))
