"""A network of another project, called and read as its model card says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.flow.paths import parse_path
from mfdiag.models.cards.card import Card
from mfdiag.models.wrapper import Wrapper

__all__ = ["Adapted"]


class Adapted(Wrapper):
    """`network` as a function of (x, r, t, y) in this project's convention: data at t = 0, the point x at t.

    It gives what the card's `prediction` names; `as_average_velocity` makes that u. `num_classes` counts the labels;
    label `num_classes`, or no labels, is the null label. With a velocity head there is `velocity`. A network with
    `takes_guidance` takes labels as float [n, 4] too: label, guidance scale, lower and upper end of its interval.
    Raises InputError where the network does not return what the card says.
    """

    def __init__(self, network: nn.Module, card: Card) -> None:
        super().__init__(network)
        self.card = card
        self.num_classes = card.conditioning.classes
        self.takes_guidance = not card.words.isdisjoint(("omega", "t_min", "t_max"))
        self.path = parse_path(card.convention.path)
        if not callable(getattr(network, card.call.method, None)):
            raise InputError(
                f"{card.name} calls {card.call.method!r}, which {type(network).__name__} does not have; "
                "correct call.method."
            )

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The prediction, shaped as x [n, *shape], from times r and t [n] and labels y int64 [n] or None."""
        return self._read(self._called(x, r, t, y), self.card.output.part)

    @property
    def velocity(self) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]:
        """(x, r, t, labels) -> the velocity head's prediction; there only where the card names a head."""
        head = self.card.output.velocity_head
        if head is None:
            raise AttributeError("the card names no velocity head")

        def velocity(x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return self._read(self._called(x, r, t, y), head)

        return velocity

    def _called(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None) -> Any:
        """What the network returns, called in its own convention."""
        card = self.card
        if not card.output.average:
            r = t
        # D1 runs the other way: time t here is s = 1 - t there, and dx/ds = -dx/dt. An average over the interval
        # between two times does not depend on which is named first, so
        #   u(x_t, r, t) = (t - r)^-1 int_r^t v = -U(x_t; 1 - r, 1 - t), the point being at s = 1 - t.
        # A network whose first time is the point's, as in x + (s_2 - s_1) U(x, s_1, s_2), takes [x, t, r].
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
        words: dict[str, Any] = {"x": x, "r": scale * r, "t": scale * t, "h": scale * h, "none": None}
        if self.takes_guidance:
            words |= {"omega": torch.ones_like(t), "t_min": torch.zeros_like(t), "t_max": torch.ones_like(t)}
            if y is not None and y.ndim == 2:
                y, *guidance = y.unbind(1)
                words |= dict(zip(("omega", "t_min", "t_max"), guidance, strict=True))
                y = y.long()
        words["y"] = self._labels(y, x)
        arguments = [_filled(word, words) for word in card.call.arguments]
        keywords = {name: _filled(word, words) for name, word in card.call.keywords.items()}
        method = self.network if card.call.method == "forward" else getattr(self.network, card.call.method)
        return method(*arguments, **keywords)

    def _labels(self, y: Tensor | None, x: Tensor) -> Tensor | None:
        """Labels as the network takes them, from labels y int64 [n] or None; x [n, ...] tells number and dtype."""
        told = self.card.conditioning
        if told.kind == "none":
            return None
        if y is None:
            y = torch.full(x.shape[:1], told.classes, dtype=torch.int64, device=x.device)
        null = told.classes if told.null is None else told.null
        y = torch.where(y == told.classes, null, y)
        if told.kind == "index":
            return y
        columns = torch.arange(told.classes, device=x.device)
        return (y[:, None] == columns).to(x.dtype)

    def _read(self, returned: Any, part: int | str | None) -> Tensor:
        """The named part of what the network returned, in this project's layout and direction."""
        found = _part(returned, part)
        if not isinstance(found, Tensor):
            raise InputError(
                f"{self.card.name} takes {_named(part)} of what {type(self.network).__name__} returns for its "
                f"prediction, but {_there(returned)}; correct output."
            )
        if self.card.call.layout == "NHWC":
            found = found.movedim(-1, 1)
        reversed_ = self.card.convention.direction == "D1" and self.card.output.prediction == "u"
        return -found if reversed_ else found


def _filled(word: Any, words: Mapping[str, Any]) -> Any:
    """A word's value; a list packs a tuple, a mapping a dictionary."""
    if isinstance(word, str):
        return words[word]
    if isinstance(word, list):
        return tuple(_filled(item, words) for item in word)
    if not isinstance(word, dict):
        return word
    if word.keys() == {"value"}:
        return word["value"]
    if word.keys() == {"each"}:
        return torch.full_like(words["t"], word["each"])
    return {name: _filled(item, words) for name, item in word.items()}


def _part(returned: Any, part: int | str | None) -> Any:
    if part is None:
        return returned
    try:
        by_name = isinstance(part, str) and not isinstance(returned, Mapping)
        return getattr(returned, str(part)) if by_name else returned[part]
    except (LookupError, TypeError, AttributeError):
        return None


def _named(part: int | str | None) -> str:
    return "all" if part is None else f"part {part!r}"


def _there(returned: Any) -> str:
    """What there is, in words."""
    if isinstance(returned, Mapping):
        return f"there is a {type(returned).__name__} of {', '.join(map(repr, returned))}"
    if isinstance(returned, tuple | list):
        return f"there is a {type(returned).__name__} of {len(returned)} parts"
    return f"there is one {type(returned).__name__}"
