"""A network of another project, called as its model card says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.flow.conditions import Condition, Conditions, labels_of
from mfdiag.flow.paths import parse_path
from mfdiag.models.call_adapter import per_sample, shaped_times
from mfdiag.models.cards.card import KEEP, Card, ConditionInput
from mfdiag.models.cards.field_types import is_joined
from mfdiag.models.wrapper import Wrapper

__all__ = ["CardAdapter"]


class CardAdapter(Wrapper):
    """`network` as a function of (x, r, t, y) in mfdiag's convention: data at t = 0, the point x at time t.

    It returns the card's `prediction`, which `as_average_velocity` turns into u. `num_classes` is the number of labels
    without the null label; label `num_classes`, or no labels, stands for the null label. `velocity` exists if the card
    has a velocity head. If `takes_guidance`, labels may also be float [n, 4]: label, guidance scale, and the lower and
    upper end of the guidance interval. If the card has conditions, y is `Conditions` with their arrays.

    Raises:
        InputError: If the network lacks the method or an encoder that the card calls.
    """

    def __init__(self, network: nn.Module, card: Card) -> None:
        super().__init__(network)
        self.card = card
        self.num_classes = card.conditioning.classes
        self.takes_guidance = not card.words.isdisjoint(("omega", "t_min", "t_max"))
        self.condition_names = card.condition_names
        entries = card.call.conditions.values()
        self.conditions_without_null = tuple(name for entry in entries if entry.null is None for name in entry.names)
        self.path = parse_path(card.convention.path)
        for name, entry in card.call.conditions.items():
            if entry.encoder is not None and not callable(_attribute(network, entry.encoder)):
                raise InputError(
                    f"{card.name} encodes {name!r} with {entry.encoder!r}, which {type(network).__name__} does not "
                    f"have; correct call.conditions.{name}.encoder."
                )
        if not callable(getattr(network, card.call.method, None)):
            raise InputError(
                f"{card.name} calls {card.call.method!r}, which {type(network).__name__} does not have; "
                "correct call.method."
            )

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Condition = None) -> Tensor:
        """The network's prediction.

        Args:
            x: Points x_t [n, *shape].
            r: Times r [n] in [0, 1], the other end of the interval.
            t: Times t [n] in [0, 1] of the points.
            y: Labels int64 [n], float [n, 4] with guidance, or None; or `Conditions` that hold them.

        Returns:
            The prediction, shaped as x.

        Raises:
            InputError: If the network does not return what the card says.
        """
        return self._evaluate(x, r, t, y, self.card.output.part)

    @property
    def velocity(self) -> Callable[[Tensor, Tensor, Tensor, Condition], Tensor]:
        """(x, r, t, labels) -> the prediction of the velocity head; exists only if the card has one."""
        head = self.card.output.velocity_head
        if head is None:
            raise AttributeError("the card has no velocity head")

        def velocity(x: Tensor, r: Tensor, t: Tensor, y: Condition = None) -> Tensor:
            return self._evaluate(x, r, t, y, head)

        return velocity

    def _evaluate(self, x: Tensor, r: Tensor, t: Tensor, y: Condition, part: int | str | None) -> Tensor:
        """The tensor at `part` of the output."""
        if not self.card.call.time_shape and len(x) > 1:  # the network takes one sample at a time
            return per_sample(lambda x, r, t, y: self._evaluate(x, r, t, y, part), x, r, t, y)
        return self._read_output(self._call_network(x, r, t, y), part)

    def _call_network(self, x: Tensor, r: Tensor, t: Tensor, condition: Condition) -> Any:
        """Call the network in its own convention."""
        card, y = self.card, labels_of(condition)
        conditions = self._conditions(condition)
        if not card.output.average:
            r = t
        # D1 reverses time: t here is s = 1 - t in the network, and dx/ds = -dx/dt. An average over the interval
        # between two times does not depend on their order, so
        #   u(x_t, r, t) = (t - r)^-1 int_r^t v = -U(x_t; 1 - r, 1 - t), with the point at s = 1 - t.
        # A network whose first time is that of the point, as in x + (s_2 - s_1) U(x, s_1, s_2), takes [x, t, r].
        if card.convention.direction == "D1":
            r, t = 1 - r, 1 - t
        if card.convention.time_clamp is not None:
            r, t = (time.clamp(*card.convention.time_clamp) for time in (r, t))
        h = t - r if card.convention.direction == "D0" else r - t
        if card.predicts_denoised:
            # EDM (arXiv 2206.00364): z = x_t / alpha = x_0 + (sigma / alpha) x_1 at noise level sigma / alpha
            x = x / self.path.alpha(t).view(-1, *[1] * (x.ndim - 1))
            r, t = (self.path.sigma(time) / self.path.alpha(time) for time in (r, t))
            h = t - r
        scale = card.call.time_scale
        if card.call.layout == "NHWC":
            x = x.movedim(1, -1)
        times = {"r": r, "t": t, "h": h}
        words: dict[str, Any] = {"x": x, "none": None, "channels": -1 if card.call.layout == "NHWC" else 1}
        words |= {word: shaped_times(scale * time, card.call.time_shape) for word, time in times.items()}
        if self.takes_guidance:
            words |= {"omega": torch.ones_like(t), "t_min": torch.zeros_like(t), "t_max": torch.ones_like(t)}
            if y is not None and y.ndim == 2:
                y, *guidance = y.unbind(1)
                words |= dict(zip(("omega", "t_min", "t_max"), guidance, strict=True))
                y = y.long()
        words["y"] = self._labels(y, x)
        words["dropped"] = self._dropped(condition, y, x)
        words["condition"] = conditions
        arguments = [_value_of(word, words) for word in card.call.arguments]
        keywords = {name: _value_of(word, words) for name, word in card.call.keywords.items()}
        keywords |= {name: value for name, value in conditions.items() if name not in card.conditions_by_place}
        method = self.network if card.call.method == "forward" else getattr(self.network, card.call.method)
        return method(*arguments, **keywords)

    def _labels(self, y: Tensor | None, x: Tensor) -> Tensor | None:
        """Labels as the network takes them, from labels y int64 [n] or None; x [n, ...] gives n and the dtype."""
        conditioning = self.card.conditioning
        if conditioning.kind == "none":
            return None
        if y is None or conditioning.dropped:
            y = torch.full(x.shape[:1], conditioning.classes, dtype=torch.int64, device=x.device)
        if conditioning.offset:
            shifted = (y + conditioning.offset) % conditioning.classes
            y = torch.where(y == conditioning.classes, y, shifted)
        null = conditioning.classes if conditioning.null is None else conditioning.null
        y = torch.where(y == conditioning.classes, null, y)
        if conditioning.kind == "index":
            return y
        columns = torch.arange(conditioning.classes, device=x.device)
        return (y[:, None] == columns).to(x.dtype)

    def _dropped(self, condition: Condition, y: Tensor | None, x: Tensor) -> Tensor:
        """Which samples [n] have the null condition; y [n] are their labels, or None."""
        if isinstance(condition, Conditions) and condition.dropped is not None:
            return condition.dropped
        if self.card.conditioning.dropped or (y is None and self.num_classes):
            return torch.ones(len(x), dtype=torch.bool, device=x.device)
        return torch.zeros(len(x), dtype=torch.bool, device=x.device) if y is None else y == self.num_classes

    def _conditions(self, condition: Condition) -> dict[str, Any]:
        """What the network receives for each entry of call.conditions."""
        entries = self.card.call.conditions
        arrays = condition.arrays if isinstance(condition, Conditions) else {}
        dropped = condition.dropped if isinstance(condition, Conditions) else None
        if missing := [name for name in self.card.condition_names if name not in arrays]:
            raise InputError(
                f"{self.card.name} passes the array {missing[0]!r} of the data, but none was given; pass --data with "
                "it, or Conditions that hold it."
            )
        values = {}
        for name, entry in entries.items():
            null = self._null_value(entry)
            own = {array: _with_null(arrays[array], null, dropped) for array in entry.names}
            values[name] = self._encoded(entry, own)
        return values

    def _null_value(self, entry: ConditionInput) -> Any:
        """The null value of a condition; that of an attribute of the network is looked up in each call."""
        if not isinstance(entry.null, str) or entry.null == KEEP:
            return entry.null
        value = _attribute(self.network, entry.null)
        if not isinstance(value, Tensor):
            raise InputError(
                f"{self.card.name} takes a null value from {entry.null!r}, but {type(self.network).__name__} has no "
                f"such tensor; correct null in call.conditions, or write {KEEP}."
            )
        return value

    def _encoded(self, entry: ConditionInput, arrays: Mapping[str, Tensor]) -> Any:
        """The arrays of one condition as its encoder, or else the network, takes them."""
        if entry.encoder is None:
            return _value_of(entry.array, arrays)
        n = len(next(iter(arrays.values())))
        if entry.fold:
            arrays = {name: values.flatten(0, 1) for name, values in arrays.items()}
        taken = _value_of(entry.array, arrays)
        output = _attribute(self.network, entry.encoder)(*(taken if isinstance(taken, tuple) else (taken,)))
        return output.reshape(n, -1) if entry.fold else output

    def _read_output(self, output: Any, part: int | str | None) -> Tensor:
        """The tensor at `part` of what the network returned, in mfdiag's layout and direction."""
        tensor = _part_of(output, part)
        if not isinstance(tensor, Tensor):
            where = "the whole output" if part is None else f"part {part!r} of the output"
            raise InputError(
                f"{self.card.name} expects a tensor as {where} of {type(self.network).__name__}, but the output is "
                f"{_described(output)}; correct output in the card."
            )
        if self.card.call.layout == "NHWC":
            tensor = tensor.movedim(-1, 1)
        if self.card.output.channels is not None:
            tensor = tensor[:, : self.card.output.channels]
        reversed_ = self.card.convention.direction == "D1" and self.card.output.prediction == "u"
        return -tensor if reversed_ != (self.card.output.sign == -1) else tensor


def _value_of(word: Any, words: Mapping[str, Any]) -> Any:
    """The value that a word stands for; a list becomes a tuple, a mapping a dictionary."""
    if isinstance(word, str):
        return words[word]
    if isinstance(word, list):
        return tuple(_value_of(item, words) for item in word)
    if not isinstance(word, dict):
        return word
    if is_joined(word):
        return _joined([_value_of(item, words) for item in word["cat"]], words["x"], words["channels"])
    if word.keys() == {"value"}:
        return word["value"]
    if word.keys() == {"condition"} and "condition" in words:
        return words["condition"][word["condition"]]
    if word.keys() == {"each"}:
        return torch.full_like(words["t"].reshape(-1), word["each"])
    return {name: _value_of(item, words) for name, item in word.items()}


def _joined(values: list[Tensor], x: Tensor, axis: int) -> Tensor:
    """Values joined along the axis of x's channels; [n] and [n, k] are the same at every place of those with places."""
    n, rank = len(x), max(value.ndim for value in values)
    uniform = [value.ndim <= 2 or value.numel() == n for value in values]
    channels = [
        value.to(x.dtype).reshape(n, -1, *[1] * (rank - 2)) if same else value.to(x.dtype).movedim(axis, 1)
        for value, same in zip(values, uniform, strict=True)
    ]
    places = torch.broadcast_shapes(*(value.shape[2:] for value in channels))
    return torch.cat([value.expand(-1, -1, *places) for value in channels], 1).movedim(1, axis)


def _attribute(network: nn.Module, dotted: str) -> Any:
    """A dotted attribute of the network, or None."""
    value: Any = network
    for name in dotted.split("."):
        value = getattr(value, name, None)
    return value


def _with_null(values: Tensor, null: Any, dropped: Tensor | None) -> Tensor:
    """An array [n, ...] of conditions with its null value in the dropped samples."""
    if dropped is None or null is None or isinstance(null, str):
        return values
    rows = dropped.view(-1, *[1] * (values.ndim - 1))
    return torch.where(rows, torch.as_tensor(null, dtype=values.dtype, device=values.device), values)


def _part_of(output: Any, part: int | str | None) -> Any:
    """The part at an index, key or attribute; None if it does not exist."""
    if part is None:
        return output
    try:
        by_name = isinstance(part, str) and not isinstance(output, Mapping)
        return getattr(output, str(part)) if by_name else output[part]
    except (LookupError, TypeError, AttributeError):
        return None


def _described(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {', '.join(map(repr, output))}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)} parts"
    return f"one {type(output).__name__}"
