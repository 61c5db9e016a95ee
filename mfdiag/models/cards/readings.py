"""Readings of a network: the conventions that its file may have been trained in, as changes of the declared card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, islice, product
from typing import Any, NamedTuple

from torch import nn

from mfdiag.flow.paths import LINEAR, Path
from mfdiag.models.call_adapter import CallAdapter, TimeShape
from mfdiag.models.call_signature import DOCUMENTED_CALL, NetworkCall
from mfdiag.models.cards.adapter import CardAdapter
from mfdiag.models.cards.card import Card
from mfdiag.models.cards.field_types import DENOISED, SPECIAL
from mfdiag.models.networks.registry import PREDICTIONS
from mfdiag.models.prediction import PredictionAdapter

__all__ = ["Declared", "Reading", "declared_reading", "readings"]

TIME_SCALES = (1.0, 1000.0, 0.001)
FORMS = (("r", "t"), ("t", "r"), ("h", "t"), ("t", "h"))
_LAST_LEVEL = 80 / 81  # time of EDM's greatest noise level, 80 (arXiv 2206.00364)
_FREQUENT = 4  # scales of the data that are tried first
_RARE = "rare scales"
_FACTORY = "unknown.module:network"  # of a network in memory, whose card is never written


@dataclass(frozen=True)
class Reading:
    """One convention in which a network can be called and its data scaled.

    Attributes:
        times: What is passed where the declared call passes r (or h = t - r), and where it passes t.
        direction: D0 or D1, as in a card.
        sign: 1, or -1 where the network predicts the negative.
        time_scale: Factor on every time.
        prediction: What the network predicts.
        factor: Factor on the declared data.
        shift: Added to them after that.
        weights: Key of the set of weights.
        labels: Offset of class numbers, or None where every sample gets the null label.
    """

    times: tuple[str, str]
    direction: str
    sign: int
    time_scale: float
    prediction: str
    factor: float = 1.0
    shift: float = 0.0
    weights: str = "raw"
    labels: int | None = 0

    def changes(self, declared: Reading) -> dict[str, Any]:
        """The axes on which this reading differs from the declared one, by name; factor and shift are one axis."""
        names = [name for name in self.__dataclass_fields__ if name not in ("factor", "shift")]
        differing = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(declared, name)}
        scaled = (self.factor, self.shift) != (declared.factor, declared.shift)
        return differing | ({"data": (self.factor, self.shift)} if scaled else {})

    @cached_property
    def denoised(self) -> bool:
        """Whether the network is read as a denoiser whose times are noise levels."""
        return self.prediction.partition(":")[0] == DENOISED


class Declared(NamedTuple):
    """A network, and how the user, its file or its card says that it is called.

    Attributes:
        network: The network without adapters.
        card: How it is called.
        reading: The same, as a reading.
    """

    network: nn.Module
    card: Card
    reading: Reading

    def card_of(self, reading: Reading) -> Card:
        """The card of a reading. `data` and `weights` stay as they are: they belong to the file, not to the call."""
        card = self.card
        words = dict(zip(self.reading.times, reading.times, strict=True))
        call = card.call.model_copy(
            update={
                "arguments": _renamed(card.call.arguments, words),
                "keywords": _renamed(card.call.keywords, words),
                "time_scale": reading.time_scale,
            }
        )
        conditioning = card.conditioning.model_copy(
            update={"offset": reading.labels or 0, "dropped": reading.labels is None}
        )
        convention = card.convention.model_copy(update={"direction": reading.direction})
        low, high = convention.time_clamp or (0.0, 1.0)
        if reading.denoised and high == 1:
            convention = convention.model_copy(update={"time_clamp": (low, _LAST_LEVEL)})
        updated = {
            "call": call,
            "conditioning": conditioning,
            "convention": convention,
            "output": card.output.model_copy(update={"prediction": reading.prediction, "sign": reading.sign}),
        }
        return card.model_copy(update=updated).in_file(card.file)


def declared_reading(module: nn.Module, path: Path = LINEAR, weights: str = "raw") -> Declared:
    """How a network is called as u(x, r, t, y), read from the adapters around it.

    Args:
        module: The network in its adapters.
        path: The path that it is measured on.
        weights: The key of its weights.

    Returns:
        The network itself, and its declared convention.
    """
    prediction = "u"
    if isinstance(module, PredictionAdapter):
        prediction, module = module.specification, module.network
    if isinstance(module, CardAdapter):
        network, card = module.network, module.card
        prediction = card.output.prediction if card.predicts_denoised else prediction
        output = card.output.model_copy(update={"prediction": prediction})
        convention = card.convention.model_copy(update={"path": path.name})
        card = card.model_copy(update={"output": output, "convention": convention}).in_file(card.file)
    elif isinstance(module, CallAdapter):
        network, card = module.network, _card_without_file(module, module.call, module.time_shape, prediction, path)
    else:
        network, card = module, _card_without_file(module, DOCUMENTED_CALL, ("n",), prediction, path)
    words = card.words
    reading = Reading(
        times=("h" if "h" in words and "r" not in words else "r", "t"),
        direction=card.convention.direction,
        sign=card.output.sign,
        time_scale=card.call.time_scale,
        prediction=prediction,
        weights=weights,
        labels=None if card.conditioning.dropped else card.conditioning.offset,
    )
    return Declared(network, card, reading)


def _card_without_file(
    module: nn.Module, call: NetworkCall, time_shape: TimeShape, prediction: str, path: Path
) -> Card:
    """The card of a network that has none: mfdiag's own convention, called as `call` says."""
    classes = (getattr(module, "num_classes", 0) or 0) if "y" in call.words else 0
    names = {} if classes else {"y": "none"}
    return Card.model_validate(
        {
            "network": {"factory": _FACTORY},
            "call": {
                "arguments": [names.get(word, word) for _, word in call.arguments],
                "keywords": {name: names.get(word, word) for name, word in call.keywords},
                "time_shape": time_shape,
                "conditions": {name: name for name in call.conditions},
            },
            "conditioning": {"kind": "index", "classes": classes} if classes else {},
            "convention": {"path": path.name},
            "output": {"prediction": prediction, "average": bool({"r", "h"} & call.words)},
        }
    )


def _renamed(words: Any, names: dict[str, str]) -> Any:
    """Words of a call with other names."""
    if isinstance(words, str):
        return names.get(words, words)
    if isinstance(words, list):
        return [_renamed(word, names) for word in words]
    if isinstance(words, dict) and words.keys() not in SPECIAL:
        return {name: _renamed(word, names) for name, word in words.items()}
    return words


def readings(
    declared: Declared,
    data: Sequence[tuple[float, float]] = ((1.0, 0.0),),
    weights: Sequence[str] = (),
    *,
    labeled: bool = False,
    safe: bool = False,
    most: int | None = None,
) -> list[Reading]:
    """Every combination of conventions that a network can have been trained in, those with fewest changes first.

    Args:
        declared: The network and how it is called.
        data: Factors on the declared data, and shifts after that.
        weights: Keys of further sets of weights.
        labeled: Whether samples have labels.
        safe: Whether to leave out what a network may look up in a table: other labels and other scales of times. An
            index out of range is an error that a GPU does not recover from.
        most: How many at most.

    Returns:
        The readings, the declared one first.
    """
    own = declared.reading
    words = declared.card.words
    one_interval = len({"r", "h"} & words) == 1
    classes = declared.card.conditioning.classes if labeled else 0
    axes: dict[str, Sequence[Any]] = {  # the most frequent mistakes first
        "times": FORMS if one_interval else (),
        "direction": ("D0", "D1"),
        "prediction": (*PREDICTIONS, DENOISED),
        "sign": (1, -1),
        "time_scale": () if safe else TIME_SCALES,
        "labels": () if safe or not classes else (0, *((1, -1) if classes > 1 else ()), None),
        "data": data,
        "weights": weights,
    }
    return list(islice(_changed(own, axes), most))


def _changed(own: Reading, axes: Mapping[str, Sequence[Any]]) -> Iterator[Reading]:
    """Every combination of values on the axes, those with fewest changes first; "data" is factor and shift.

    A scale of the data beyond the first few counts as two changes.
    """
    fields = {name: getattr(own, name) for name in own.__dataclass_fields__}
    others = {name: [{name: value} for value in dict.fromkeys(values)] for name, values in axes.items()}
    scales = [{"factor": factor, "shift": shift} for factor, shift in dict.fromkeys(axes["data"])]
    others |= {"data": scales[:_FREQUENT], _RARE: scales[_FREQUENT:]}
    for name, changes in others.items():
        others[name] = [change for change in changes if any(fields[field] != change[field] for field in change)]
    for count in range(len(axes) + 2):
        for names in _axes_of(others, count):
            for combination in product(*(others[name] for name in names)):
                merged = fields.copy()
                for change in combination:
                    merged |= change
                reading = Reading(**merged)
                if not reading.denoised or _suits_noise_levels(reading, own):
                    yield reading


def _axes_of(names: Iterable[str], count: int) -> Iterator[tuple[str, ...]]:
    """The sets of axes that make so many changes."""
    frequent = [name for name in names if name != _RARE]
    yield from combinations(frequent, count)
    others = [name for name in frequent if name != "data"]
    if count >= 2:
        yield from ((*some, _RARE) for some in combinations(others, count - 2))


def _suits_noise_levels(reading: Reading, own: Reading) -> bool:
    """Whether a denoiser may be read so: noise levels have one direction, no differences, and the scale of the data."""
    times = reading.times == own.times or "h" not in reading.times
    return reading.direction == "D0" and times and reading.time_scale in (1.0, own.time_scale)
