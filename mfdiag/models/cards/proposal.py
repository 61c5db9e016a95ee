"""A model card for a checkpoint, filled with what its names, shapes and plain values tell."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel

from mfdiag.models.cards.card_files import shipped_cards
from mfdiag.models.cards.recognition import Recognise
from mfdiag.models.formats.containers import subset
from mfdiag.models.formats.pickles import Header

__all__ = ["Proposal", "propose"]

Tensors = Mapping[str, Header]

_WRAPPERS = ("module", "_orig_mod")
_LABELS = re.compile(r"(^|[._])(y|label|labels|class|cls|map_label)_?(emb\w*|proj)?[._].*", re.I)
_TIMES = re.compile(r"(^|[._])(t|r|h|s|time|timestep|noise|map_noise|sigma|gap)\d?_?(emb\w*|proj\w*|mlp)([._]|$)", re.I)
_SIDES = re.compile(r"(^|\.)(img_resolution|resolution|image_size|img_size|input_size)$")
_SCALES = re.compile(r"(^|\.)\w*(latents?|vae|scal\w*)_(scale|factor)\w*$")
_HINTS = {
    "network.arguments": re.compile(
        r"(^|\.)(model|arch|depth|dim|width|patch_size|\w*(channel|hidden|heads|blocks|layers)\w*)$"
    ),
    "guidance": re.compile(r"(^|\.)\w*(cfg|guidance|omega|kappa|drop_prob|dropout_prob|uncond)\w*$"),
    "objective.weighting": re.compile(r"(^|\.)\w*(weighting|adaptive|norm_p|norm_eps)\w*$"),
    "objective.times": re.compile(r"(^|\.)\w*(time|mean|mu|sigma|std|ratio|sampler)(_\w*)?$", re.I),
}


class Proposal(BaseModel):
    """A card: `recognised` names the shipped one it extends, if any; `differs`, whether it says more than that one.

    `unknown` are the fields the file does not tell, each with what is taken for it; `text` is the card, as YAML.
    """

    recognised: str | None = None
    about: str = ""
    differs: bool = True
    unknown: dict[str, str]
    text: str


class _Unknown(str):
    """In place of a field's value: what is taken for it."""


class _Weights(NamedTuple):
    """Where the weights are; `tensors` are the raw ones, with the prefixes in `strip` taken off."""

    raw: str
    ema: str | None
    strip: list[str]
    tensors: Tensors


def propose(name: str, sets: Mapping[str, Tensors], told: Mapping[str, Any]) -> Proposal | None:
    """A card for the file `name`, from its sets of weights and its plain values, both by dotted place.

    None if it holds no weights.
    """
    places = dict(_copies(sets))
    if not places:
        return None
    guessed = _weights(places)
    entries = {place.partition(".")[0] for place in (*sets, *told)}
    fitting: list[tuple[str, dict[str, Any], Recognise, _Weights]] = []
    for card, (values, rule) in _rules().items():
        weights = _as_in(values.get("weights", {}), sets) or guessed
        if rule.fits(weights.tensors, entries):
            fitting.append((card, values, rule, weights))
    if fitting:
        return _extension(*max(fitting, key=lambda found: len(found[2].tensors)), told)
    fields, comments = _generic(name, guessed, told)
    unknown = {field: str(value) for field, value in fields.items() if isinstance(value, _Unknown)}
    return Proposal(unknown=unknown | comments, text=_yaml(fields, comments))


def _copies(sets: Mapping[str, Tensors]) -> Iterator[tuple[str, Tensors]]:
    """The sets; one whose names have prefixes below which the same names lie (net, net_ema) as one for each."""
    for place, tensors in sets.items():
        parts = {prefix: subset(tensors, prefix) for prefix in dict.fromkeys(n.partition(".")[0] for n in tensors)}
        twins = {
            prefix: part
            for prefix, part in parts.items()
            if len(part) > 1 and sum(part.keys() == other.keys() for other in parts.values()) > 1
        }
        if any("ema" in prefix for prefix in twins):
            yield from ((f"{place}.{prefix}" if place else prefix, part) for prefix, part in twins.items())
        else:
            yield place, tensors


def _weights(places: Mapping[str, Tensors]) -> _Weights:
    """The largest set that is no average, and the first that is one."""
    averaged = [place for place in places if re.search("ema|shadow|averag", place, re.I)]
    sizes = {place: sum(math.prod(header.shape) for header in tensors.values()) for place, tensors in places.items()}
    raw = max(places, key=lambda place: (place not in averaged, sizes[place]))
    return _stripped(raw, next((place for place in averaged if place != raw), None), places[raw])


def _stripped(raw: str, ema: str | None, tensors: Tensors) -> _Weights:
    strip: list[str] = []
    for wrapper in _WRAPPERS:
        if all(name.startswith(f"{wrapper}.") for name in tensors):
            tensors = subset(tensors, wrapper)
            strip.append(wrapper)
    return _Weights(raw, ema, strip, tensors)


def _as_in(own: Mapping[str, Any], sets: Mapping[str, Tensors]) -> _Weights | None:
    """The weights where a card's `weights` says, or its averages alone; None if neither is in the file."""
    raw, ema = own.get("raw", ""), own.get("ema")
    averaged = None if ema is None else _found(sets, ema)
    if tensors := _found(sets, raw):
        return _stripped(raw, ema if averaged else None, tensors)
    return _stripped(str(ema), None, averaged) if averaged else None


def _found(sets: Mapping[str, Tensors], place: str) -> Tensors | None:
    """The set at `place`, or the part of one whose names begin with the last words of `place`."""
    if place in sets:
        return sets[place]
    parts = (subset(found, place.removeprefix(f"{key}.") if key else place) for key, found in sets.items())
    return next(filter(None, parts), None)


def _rules() -> dict[str, tuple[dict[str, Any], Recognise]]:
    """Shipped card -> its values, and how its files are told from others."""
    # parsed without checking the cards, which would import torch
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    cards = {name: yaml.load(path.read_bytes(), loader) for name, path in shipped_cards().items()}
    for card in cards.values():
        labels = card.get("conditioning", {})
        labels |= {"null": labels.pop(None)} if None in labels else {}  # in YAML the key `null` is nothing
    return {name: (card, Recognise(**card["recognise"])) for name, card in cards.items() if "recognise" in card}


def _extension(
    card: str, values: Mapping[str, Any], rule: Recognise, weights: _Weights, told: Mapping[str, Any]
) -> Proposal:
    own = {**values, "weights": {"raw": "", **values.get("weights", {})}}
    found = {"weights.raw": weights.raw, "weights.ema": weights.ema, **rule.found(weights.tensors, told)}
    fields = {field: value for field, value in found.items() if value != _at(own, field)}
    unknown, comments = {}, {}
    if rule.untold and any(field.startswith("network.arguments.") for field in fields):
        comments["network.arguments"] = f"{', '.join(rule.untold)}: those of {card} are taken"
        unknown = {f"network.arguments.{name}": f"that of {card} is taken" for name in rule.untold}
    for field in [field for field in rule.choices if field in fields and fields[field] is None]:
        text = f"none of {', '.join(rule.choices[field])} has its sizes: name a factory that has, and its arguments"
        fields = {name: value for name, value in fields.items() if name != field} | {"network.factory": _Unknown(text)}
        unknown["network.factory"] = text
    text = _yaml({"extends": card, **fields}, comments)
    about = values.get("about", "")
    return Proposal(recognised=card, about=about, differs=bool(fields), unknown=unknown, text=text)


def _at(values: Any, field: str) -> Any:
    for name in field.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _generic(name: str, weights: _Weights, told: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Fields of a card by dotted name, and comments on those that are not the file's."""
    labels = _conditioning(weights.tensors, told)
    embeddings = sorted({found.group().strip("._") for n in weights.tensors if (found := _TIMES.search(n))})
    times = f"; its time embeddings are {', '.join(embeddings)}" if embeddings else ""
    fields: dict[str, Any] = {
        "format": 1,
        "about": name,
        "network.factory": "network.py:build",
        "network.arguments": _Unknown("those of the factory" + _hints("network.arguments", told)),
        "weights.raw": weights.raw,
        **({"weights.ema": weights.ema} if weights.ema else {}),
        **({"weights.strip": weights.strip} if weights.strip else {}),
        "call.arguments": ["x", "r", "t", *(["y"] if labels else [])],
        "call.time_scale": _Unknown("1 is taken; 1000 if the network wants its times times 1000"),
        "convention.direction": _Unknown("D0 is taken: data at time 0, noise at time 1; D1 the other way"),
        "output.prediction": _Unknown("u is taken; v, x or eps if the network predicts these"),
        "output.average": _Unknown("true is taken; false for flow matching, which has no r"),
        **labels,
        "guidance": _Unknown("none is taken" + _hints("guidance", told)),
        "objective.weighting": _Unknown("such as adaptive:1,0.01" + _hints("objective.weighting", told)),
        "objective.times": _Unknown("such as logit_normal:-0.4,1,0.25" + _hints("objective.times", told)),
        "data.shape": _shape(weights.tensors, told) or _Unknown("of one sample, channels first"),
        "data.scale": next(
            (value for place, value in told.items() if _SCALES.search(place) and isinstance(value, float)),
            _Unknown("1 is taken; the factor on stored latents, such as 0.18215"),
        ),
    }
    comments = {
        "network.factory": "FILE.py:callable or pkg.module:callable that builds the network",
        "call.arguments": f"their order, and whether it is r or h = t - r{times}",
    }
    if labels and labels.get("conditioning.null") is None:
        comments["conditioning.classes"] = "whether the last is the null label"
    return fields, comments


def _hints(field: str, told: Mapping[str, Any]) -> str:
    """What among the file's plain values bears on a field."""
    found = [f"{place}={value}" for place, value in told.items() if _HINTS[field].search(place)]
    return "; the file has " + ", ".join(found[:8]) if found else ""


def _conditioning(tensors: Tensors, told: Mapping[str, Any]) -> dict[str, Any]:
    """By the label embedding's rows, or a one-hot projection's columns."""
    classes = next((value for place, value in told.items() if place.endswith(("num_classes", "label_dim"))), None)
    for name, header in tensors.items():
        if len(header.shape) == 2 and _LABELS.search(name) is not None and name.endswith("weight"):
            rows, columns = header.shape
            if classes == columns != rows or "map_label" in name:
                return {"conditioning.kind": "one_hot", "conditioning.classes": columns}
            null = rows - 1 == classes or (classes is None and rows % 10 == 1)
            known = {"conditioning.kind": "index", "conditioning.classes": rows - 1 if null else rows}
            return known | ({"conditioning.null": rows - 1} if null else {})
    return {}


def _shape(tensors: Tensors, told: Mapping[str, Any]) -> list[int] | None:
    """Of one sample, by the first convolution's channels and a positional embedding's length or the arguments."""
    first = next((header for header in tensors.values() if len(header.shape) == 4), None)
    if first is None:
        return None
    channels, patch = first.shape[1], first.shape[2]
    position = next((h for name, h in tensors.items() if re.search("pos_?emb", name) and len(h.shape) == 3), None)
    if position is not None and math.isqrt(position.shape[1]) ** 2 == position.shape[1]:
        side = math.isqrt(position.shape[1]) * patch
        return [channels, side, side]
    side = next((value for place, value in told.items() if _SIDES.search(place) and isinstance(value, int)), 0)
    return [channels, side, side] if side else None


def _yaml(fields: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """Dotted fields as YAML: sections of lines, deeper mappings in braces, unknown values as comments."""
    sections: dict[str, dict[str, Any]] = {}
    for field, value in fields.items():
        head, _, rest = field.partition(".")
        section = sections.setdefault(head, {})
        for name in rest.split(".")[:-1]:
            section = section.setdefault(name, {})
        section[rest.rpartition(".")[2]] = value
    lines = []
    for head, section in sections.items():
        if "" in section:
            lines.append(_line("", head, section[""], comments.get(head)))
            continue
        silent = all(isinstance(value, _Unknown) for value in section.values())
        lines.append(f"# {head}:" if silent else f"{head}:")
        lines += [_line("  ", name, value, comments.get(f"{head}.{name}")) for name, value in section.items()]
    return "\n".join(lines) + "\n"


def _line(indent: str, name: str, value: Any, comment: str | None) -> str:
    if isinstance(value, _Unknown):
        return f"# {indent}{name}: not in the file; {_one_line(value)}"
    text = f"{_inline(name)}: {_inline(value)}"
    return f"{indent}{text}" + (f"  # not in the file; {_one_line(comment)}" if comment else "")


def _inline(value: Any) -> str:
    """`value` as YAML on one line."""
    quoted = '"' if isinstance(value, str) and not value.isprintable() else None
    text = yaml.safe_dump(value, default_flow_style=True, default_style=quoted, sort_keys=False, width=math.inf)
    return text.removesuffix("...\n").strip()


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
