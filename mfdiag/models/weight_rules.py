"""Weights of another layout under the names and axes of a torch network, by the rules of a model card."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mfdiag.errors import InputError
from mfdiag.models.cards.card import Rule, Weights
from mfdiag.models.formats.containers import StateDict

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["apply_rules"]

_KERNEL = "kernel"
_FLAX_NAMES = {_KERNEL: "weight", "scale": "weight", "embedding": "weight"}  # last word in flax: in torch
_FLAX_HEADS = {  # kernels of MultiHeadDotProductAttention, for a torch.nn.Linear
    "query": (1, 2, 0),  # [in, heads, head] -> [heads * head, in]
    "key": (1, 2, 0),
    "value": (1, 2, 0),
    "out": (2, 0, 1),  # [heads, head, out] -> [out, heads * head]
}


def apply_rules(tensors: StateDict, section: Weights, network: nn.Module, card: str) -> StateDict:
    """Tensors with the names and axes of a network, as `weights.rules` and `weights.layout` of a card say.

    Args:
        tensors: Tensors by their names in the file.
        section: The card's section `weights`.
        network: The network; only its modules, names and shapes count.
        card: The card, for errors.

    Returns:
        Tensors by the names that the rules give; those to which no rule applies keep theirs. Shapes are the network's
        where adjacent axes only have to be merged.

    Raises:
        InputError: If a rule does not fit the axes of a tensor, two tensors get one name, a rule applies to none, or
            nothing says what the axes of a kernel are.
    """
    if not section.rules and section.layout == "torch":
        return tensors
    return _Placement(section, network, card).place(tensors)


class _Placement:
    """Where each tensor of a file goes."""

    def __init__(self, section: Weights, network: nn.Module, card: str) -> None:
        self.section, self.network, self.card = section, network, card
        self.own = network.state_dict()
        self.sources: dict[tuple[str, int], str] = {}  # (name in the network, part) -> name in the file

    def place(self, tensors: StateDict) -> StateDict:
        """As `apply_rules`."""
        placed: StateDict = {}
        parts: dict[str, dict[int, Tensor]] = {}
        counts: dict[str, int] = {}
        used: set[Rule] = set()
        for name, tensor in tensors.items():
            rule, target = _renamed(name, self.section.rules)
            target = self._torch_name(target)
            moved = self._moved(tensor, name, target, rule)
            number, count = (0, 1) if rule is None or rule.part is None else rule.part
            if counts.setdefault(target, count) != count or (target, number) in self.sources:
                self._refuse_second(target, number, name)
            self.sources[target, number] = name
            if rule is not None:
                used.add(rule)
            if count == 1:
                placed[target] = moved
            else:
                parts.setdefault(target, {})[number] = moved
        self._require_used(used, tensors)
        placed |= {target: self._concatenated(target, numbered, counts[target]) for target, numbered in parts.items()}
        return {target: _merged(tensor, self.own.get(target)) for target, tensor in placed.items()}

    def _torch_name(self, target: str) -> str:
        """The name with the last word that torch has for a leaf of flax."""
        head, dot, last = target.rpartition(".")
        is_flax = self.section.layout == "flax" and target not in self.own
        return f"{head}{dot}{_FLAX_NAMES.get(last, last)}" if is_flax else target

    def _moved(self, tensor: Tensor, name: str, target: str, rule: Rule | None) -> Tensor:
        """The tensor with its axes in the network's order."""
        if rule is None or (rule.axes is None and rule.reshape is None):
            is_kernel = name.rpartition(".")[2] == _KERNEL and tensor.ndim > 1 and target in self.own
            return self._kernel(tensor, name, target) if is_kernel else tensor
        if rule.reshape is not None:
            try:
                tensor = tensor.reshape(*rule.reshape)
            except RuntimeError:
                raise InputError(
                    f"Expected reshape of {self.card} to have the {tensor.numel()} numbers of {name} "
                    f"{list(tensor.shape)}, but got {list(rule.reshape)}; correct weights.rules."
                ) from None
        if rule.axes is None:
            return tensor
        if sorted(rule.axes) != list(range(tensor.ndim)):
            raise InputError(
                f"Expected axes of {self.card} to be an order of the {tensor.ndim} axes of {name} "
                f"{list(tensor.shape)}, but got {list(rule.axes)}; correct weights.rules."
            )
        return tensor.permute(*rule.axes)

    def _kernel(self, tensor: Tensor, name: str, target: str) -> Tensor:
        """A kernel of flax with the axes of the layer that it becomes part of."""
        import torch
        from torch import nn

        owner = self.network.get_submodule(target.rpartition(".")[0]) if "." in target else self.network
        spatial = tuple(range(tensor.ndim - 2))
        if self.section.layout == "flax" and target.endswith("weight"):
            if isinstance(owner, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
                # flax correlates with the kernel, torch applies the transpose of a correlation
                return torch.flip(tensor, spatial).permute(-2, -1, *spatial)
            if isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                return tensor.permute(-1, -2, *spatial)
            if isinstance(owner, nn.Linear) and tensor.ndim == 2:
                return tensor.T
            heads = next((_FLAX_HEADS[word] for word in reversed(name.split(".")) if word in _FLAX_HEADS), None)
            if isinstance(owner, nn.Linear) and tensor.ndim == 3 and heads is not None:
                return tensor.permute(*heads)
        layout = "" if self.section.layout == "flax" else "set weights.layout: flax, or "
        raise InputError(
            f"Expected {self.card} to say what the axes of {name} {list(tensor.shape)} are, because flax does not "
            f"store kernels as torch does, but it gives none for {target} of {type(owner).__name__}; {layout}add axes "
            "to its rule: [1, 0] for a transpose, [1, 2, 0] for [in, heads, head], [2, 0, 1] for [heads, head, out]."
        )

    def _refuse_second(self, target: str, number: int, name: str) -> None:
        first = self.sources.get((target, number)) or next(n for (t, _), n in self.sources.items() if t == target)
        raise InputError(
            f"Expected one tensor for {target}, but by the rules of {self.card} both {first} and {name} are; correct "
            "weights.rules."
        )

    def _require_used(self, used: set[Rule], tensors: StateDict) -> None:
        idle = [rule.from_ for rule in self.section.rules if rule not in used]
        if idle:
            raise InputError(
                f"Expected every rule of {self.card} to be the first that fits some tensor, but {', '.join(idle)} is "
                f"not; correct weights.rules. The file has {', '.join(list(tensors)[:3])}, ..."
            )

    def _concatenated(self, target: str, numbered: Mapping[int, Tensor], count: int) -> Tensor:
        """The parts of one tensor along its first axis."""
        import torch

        if absent := sorted(set(range(count)) - numbered.keys()):
            raise InputError(
                f"Expected {count} parts of {target}, as {self.card} says, but part {absent[0]} is missing; correct "
                "weights.rules."
            )
        like = self.own.get(target)
        if like is not None:  # heads of each part are merged before
            one = like[: len(like) // count] if like.ndim else like
            numbered = {number: _merged(part, one) for number, part in numbered.items()}
        try:
            return torch.cat([numbered[number] for number in range(count)])
        except RuntimeError:
            shapes = ", ".join(str(list(numbered[number].shape)) for number in range(count))
            raise InputError(
                f"Expected parts of {target} that differ along their first axis alone, but they have the shapes "
                f"{shapes}; correct the axes in weights.rules of {self.card}."
            ) from None


def _renamed(name: str, rules: Sequence[Rule]) -> tuple[Rule | None, str]:
    """The first rule whose pattern fits a name, and the name that it gives."""
    for rule in rules:
        words = re.fullmatch("([^.]*)".join(map(re.escape, rule.from_.split("*"))), name)
        if words is not None:
            first, *rest = rule.to.split("*")
            return rule, first + "".join(word + piece for word, piece in zip(words.groups(), rest, strict=False))
    return None, name


def _merged(tensor: Tensor, like: Tensor | None) -> Tensor:
    """The tensor with the shape of `like` if adjacent axes only have to be merged; else as it is, for the caller.

    Axes are never split: that would accept a kernel in the wrong order of axes.
    """
    if like is None or tensor.shape == like.shape or tensor.numel() != like.numel():
        return tensor
    sizes = list(tensor.shape)
    for wanted in like.shape:
        merged = 1
        while sizes and merged < wanted:
            merged *= sizes.pop(0)
        if merged != wanted:
            return tensor
    return tensor.reshape(like.shape)
