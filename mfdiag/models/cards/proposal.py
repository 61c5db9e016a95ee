"""A model card proposed for a checkpoint, from its tensor names, its shapes and its plain values."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, Field

from mfdiag.errors import abbreviated
from mfdiag.models.cards.card_files import shipped_cards
from mfdiag.models.cards.recognition import Recognise
from mfdiag.models.formats.containers import tensors_at, tensors_below
from mfdiag.models.formats.pickles import TensorHeader
from mfdiag.models.formats.weight_names import (
    is_average,
    is_bookkeeping,
    place_of,
    split_copies,
    without_wrappers,
)

__all__ = ["Proposal", "propose"]

Tensors = dict[str, TensorHeader]

_WRAPPERS = ("module", "_orig_mod")
_LABELS = re.compile(r"(^|[._])(y|label|labels|class|cls|map_label)_?(emb\w*|proj)?[._].*", re.I)
_TIMES = re.compile(r"(^|[._])(t|r|h|s|time|timestep|noise|map_noise|sigma|gap)\d?_?(emb\w*|proj\w*|mlp)([._]|$)", re.I)
_SIDES = re.compile(r"(^|\.)(img_resolution|resolution|image_size|img_size|input_size)$")
_SCALES = re.compile(r"(^|\.)\w*(latents?|vae|scal\w*)_(scale|factor)\w*$")
_CONVENTIONS = {  # field that no tensor shows -> its value if the shipped card has none
    "call.arguments": ["x", "r", "t"],
    "convention.direction": "D0",
    "output.prediction": "u",
    "objective.weighting": "none",
    "objective.times": "none",
    "data.scale": 1,
}
_AVERAGE_ALONE = "the file has averaged weights alone: weights.raw, and --weights raw with this card, stand for them"
_MAX_HINTS = 8  # plain values that one comment lists
_HINTS = {  # field of the card -> places of plain values that bear on it
    "network.arguments": re.compile(
        r"(^|\.)(model|arch|depth|dim|width|patch_size|\w*(channel|hidden|heads|blocks|layers)\w*)$"
    ),
    "guidance": re.compile(r"(^|\.)\w*(cfg|guidance|omega|kappa|drop_prob|dropout_prob|uncond)\w*$"),
    "objective.weighting": re.compile(r"(^|\.)\w*(weighting|adaptive|norm_p|norm_eps)\w*$"),
    "objective.times": re.compile(r"(^|\.)\w*(time|mean|mu|sigma|std|ratio|sampler)(_\w*)?$", re.I),
}


class Proposal(BaseModel):
    """A proposed card.

    `recognised` is the shipped card that it extends, or None; `about` is the line of that card, and `differs` says
    whether the proposal changes any of its fields. `unknown` are the fields that the file does not determine, with what
    is assumed for each. `unconfirmed` are the fields that come from the shipped card and leave no trace in a file.
    `candidates` are other cards and repositories whose files have the same tensors, with what differs. `text` is the
    card as YAML. `averages` are the averages in the file that the card does not take.
    """

    recognised: str | None = None
    about: str = ""
    differs: bool = True
    unknown: dict[str, str]
    unconfirmed: dict[str, str] = Field(default_factory=dict)
    candidates: list[str] = Field(default_factory=list)
    averages: list[str] = Field(default_factory=list)
    text: str


class _Unknown(str):
    """Replaces the value of a field that the file does not determine: a comment that says what is assumed."""


class _WeightPlaces(NamedTuple):
    """Where the weights are; `tensors` are the raw ones, without the prefixes in `strip`."""

    raw: str
    ema: str | None
    strip: list[str]
    tensors: Tensors


def propose(name: str, sets: Mapping[str, Tensors], plain_values: Mapping[str, Any]) -> Proposal | None:
    """Propose a card for a checkpoint.

    Args:
        name: Name of the file.
        sets: Its sets of weights by their dotted place.
        plain_values: Its plain values by their dotted place.

    Returns:
        A card that extends the shipped one whose rule fits the file, or a complete card; None if the file holds no
        weights.
    """
    places = split_copies(sets)
    if not places:
        return None
    guess = _guess_weights(places)
    entries = {place.partition(".")[0] for place in (*sets, *plain_values)} | set(plain_values)
    fitting, excluded = [], []
    for card, (fields, rule) in _rules().items():
        from_card = _weights_of_card(fields.get("weights", {}), sets)
        options = (*([from_card] if from_card else []), guess, *_without_common_prefix(guess))
        weights = next((weights for weights in options if rule.fits(weights.tensors, entries)), None)
        if weights is None:
            continue
        others = [name for name, other in rule.similar.items() if other.entries and entries.issuperset(other.entries)]
        if others:
            excluded += [_similar(rule, name) for name in others] + [f"{card} ({fields.get('about', '')})"]
        else:
            fitting.append((card, fields, rule, weights))
    if fitting:
        most_specific = max(fitting, key=lambda candidate: len(candidate[2].tensors))
        proposal = _extension_of_shipped(*most_specific, plain_values)
        similar = most_specific[2].similar  # which also say what differs
        abouts = {card: str(fields.get("about", "")) for card, fields, _, _ in fitting if card != most_specific[0]}
        others = [f"{card} ({about})" for card, about in abouts.items() if not any(name in about for name in similar)]
        others += [_similar(most_specific[2], name) for name in similar]
        return _with_candidates(proposal, others, _other_averages(places, most_specific[3].ema))
    fields, comments = _own_card(name, guess, plain_values)
    unknown = {field: str(value) for field, value in fields.items() if isinstance(value, _Unknown)}
    average_alone = all(is_average(place, places) for place in places)
    text = _yaml(fields, comments) + (f"# {_AVERAGE_ALONE}\n" if average_alone else "")
    proposal = Proposal(unknown=unknown | comments, text=text)
    return _with_candidates(proposal, excluded, _other_averages(places, guess.ema))


def _similar(rule: Recognise, repository: str) -> str:
    return f"{repository} ({rule.similar[repository].differs})"


def _other_averages(places: Mapping[str, Tensors], chosen: str | None) -> list[str]:
    """The averages beside the one that a card names."""
    if chosen is None:
        return []
    return [place for place in places if is_average(place, places) and not f"{chosen}.".startswith(f"{place}.")]


def _with_candidates(proposal: Proposal, candidates: list[str], averages: list[str]) -> Proposal:
    """The proposal with comments on what the file does not confirm, what else it may be, and its other averages."""
    lines = []
    if averages:
        shown = abbreviated(averages, _MAX_HINTS)
        lines.append(f"# the file has several averages; those that weights.ema does not name: {shown}")
    if proposal.unconfirmed:
        fields = ", ".join(f"{field} {value}" for field, value in proposal.unconfirmed.items())
        lines.append(f"# not confirmed by the file; check them: {fields}")
    lines += [f"# the tensors also fit {candidate}" for candidate in candidates]
    text = proposal.text + "".join(f"{_one_line(line)}\n" for line in lines)
    return proposal.model_copy(update={"candidates": candidates, "averages": averages, "text": text})


def _guess_weights(places: Mapping[str, Tensors]) -> _WeightPlaces:
    """The raw weights and their average, by their names; else the largest set as raw, and the first average."""
    averaged = {place: None for place in places if is_average(place, places)}
    sizes = {place: sum(math.prod(header.shape) for header in tensors.values()) for place, tensors in places.items()}
    raws = [place for place in places if place not in averaged] or list(averaged)
    largest = max(raws, key=sizes.__getitem__)
    raw = place_of(places, "raw")
    raw = largest if raw is None else raw
    ema = place_of(places, "ema")
    first = next((place for place in averaged if place != raw), None)
    return _stripped(raw, first if ema is None or ema == raw else ema, places[raw])


def _without_common_prefix(weights: _WeightPlaces) -> Iterator[_WeightPlaces]:
    """The weights without the one attribute of a training module that all tensors are below, as Lightning writes."""
    prefixes = {name.partition(".")[0] for name in weights.tensors}
    if len(prefixes) == 1:
        prefix = prefixes.pop()
        tensors = tensors_below(weights.tensors, prefix)
        yield weights._replace(strip=[*weights.strip, prefix], tensors=tensors)


def _stripped(raw: str, ema: str | None, tensors: Tensors) -> _WeightPlaces:
    strip: list[str] = []
    for wrapper in _WRAPPERS:
        if all(name.startswith(f"{wrapper}.") for name in tensors):
            tensors = tensors_below(tensors, wrapper)
            strip.append(wrapper)
    plain = {without_wrappers(name): header for name, header in tensors.items() if not is_bookkeeping(name)}
    return _WeightPlaces(raw, ema, strip, plain)


def _weights_of_card(section: Mapping[str, Any], sets: Mapping[str, Tensors]) -> _WeightPlaces | None:
    """The weights at the places in a card's section `weights`, or only its EMA; None if the file has neither."""
    raw, ema = section.get("raw", ""), section.get("ema")
    averaged = None if ema is None else tensors_at(sets, ema)
    if tensors := tensors_at(sets, raw):
        return _stripped(raw, ema if averaged else None, tensors)
    return _stripped(str(ema), None, averaged) if averaged else None


def _rules() -> dict[str, tuple[dict[str, Any], Recognise]]:
    """Shipped card -> its fields, and the rule that recognizes its files."""
    # parsed without validation, which would take longer than everything else that `mfdiag inspect` does
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    cards = {name: yaml.load(path.read_bytes(), loader) for name, path in shipped_cards().items()}
    for card in cards.values():
        labels = card.get("conditioning", {})
        labels |= {"null": labels.pop(None)} if None in labels else {}  # YAML reads the key `null` as None
    return {name: (card, Recognise(**card["recognise"])) for name, card in cards.items() if "recognise" in card}


def _extension_of_shipped(
    card: str,
    shipped_fields: Mapping[str, Any],
    rule: Recognise,
    weights: _WeightPlaces,
    plain_values: Mapping[str, Any],
) -> Proposal:
    shipped = {**shipped_fields, "weights": {"raw": "", **shipped_fields.get("weights", {})}}
    in_file = {
        "weights.raw": weights.raw,
        "weights.ema": weights.ema,
        **({"weights.strip": weights.strip} if set(weights.strip).difference(_WRAPPERS) else {}),
        **rule.values_in(weights.tensors, plain_values),
    }
    fields = {field: value for field, value in in_file.items() if value != _value_at(shipped, field)}
    unknown, comments = {}, {}
    if rule.untold and any(field.startswith("network.arguments.") for field in fields):
        comments["network.arguments"] = f"{', '.join(rule.untold)}: the values of {card} are assumed"
        unknown = {f"network.arguments.{name}": f"the value of {card} is assumed" for name in rule.untold}
    for field in [field for field in rule.choices if field in fields and fields[field] is None]:
        text = f"none of {', '.join(rule.choices[field])} has these sizes; set a factory that does, and its arguments"
        fields = {name: value for name, value in fields.items() if name != field} | {"network.factory": _Unknown(text)}
        unknown["network.factory"] = text
    text = _yaml({"extends": card, **fields}, comments)
    about = shipped_fields.get("about", "")
    unconfirmed = {}
    for field, default in _CONVENTIONS.items():
        value = _value_at(shipped, field)
        if field not in in_file and value != []:  # arguments that the card passes by name
            unconfirmed[field] = _inline(default if value is None else value)
    return Proposal(
        recognised=card, about=about, differs=bool(fields), unknown=unknown, unconfirmed=unconfirmed, text=text
    )


def _value_at(values: Any, field: str) -> Any:
    for name in field.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _own_card(
    name: str, weights: _WeightPlaces, plain_values: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Fields of a card by dotted name, and comments on those that are guessed."""
    tensors, is_flax = _with_axes_of_torch(weights.tensors), _is_flax(weights.tensors)
    labels = _conditioning(tensors, plain_values)
    embeddings = sorted({match.group().strip("._") for n in tensors if (match := _TIMES.search(n))})
    times = f"; time embeddings in the file: {', '.join(embeddings)}" if embeddings else ""
    fields: dict[str, Any] = {
        "format": 1,
        "about": name,
        "network.factory": "network.py:build",
        "network.arguments": _Unknown("keyword arguments of the factory" + _hints("network.arguments", plain_values)),
        "weights.raw": weights.raw,
        **({"weights.ema": weights.ema} if weights.ema else {}),
        **({"weights.strip": weights.strip} if weights.strip else {}),
        **({"weights.layout": "flax"} if is_flax else {}),
        "call.arguments": ["x", "r", "t", *(["y"] if labels else [])],
        "call.time_scale": _Unknown("assumed to be 1; set 1000 if the network takes times in [0, 1000]"),
        "convention.direction": _Unknown("assumed to be D0, data at time 0 and noise at time 1; D1 is the reverse"),
        "output.prediction": _Unknown("assumed to be u; set v, x or eps if the network predicts that"),
        "output.average": _Unknown("assumed to be true; set false for flow matching, which has no r"),
        **labels,
        "guidance": _Unknown("assumed to be none" + _hints("guidance", plain_values)),
        "objective.weighting": _Unknown("for example adaptive:1,0.01" + _hints("objective.weighting", plain_values)),
        "objective.times": _Unknown("for example logit_normal:-0.4,1,0.25" + _hints("objective.times", plain_values)),
        "data.shape": _sample_shape(tensors, plain_values)
        or _Unknown("shape of one sample, channels first, for example [3, 32, 32]"),
        "data.scale": next(
            (value for place, value in plain_values.items() if _SCALES.search(place) and isinstance(value, float)),
            _Unknown("assumed to be 1; for latents the factor on stored values, for example 0.18215"),
        ),
    }
    comments = {
        "network.factory": "FILE.py:callable or pkg.module:callable that builds the network",
        "call.arguments": f"check their order, and whether the network takes r or h = t - r{times}; {{cat: [t, r]}} is "
        "one tensor of both",
    }
    if labels and labels.get("conditioning.null") is None:
        comments["conditioning.classes"] = "check whether the last label is the null label"
    return fields, comments


def _is_flax(tensors: Tensors) -> bool:
    """Whether the names are those of flax, which calls kernels what torch calls weights."""
    last_words = {name.rpartition(".")[2] for name in tensors}
    return not last_words.isdisjoint(("kernel", "embedding")) and "weight" not in last_words


def _with_axes_of_torch(tensors: Tensors) -> Tensors:
    """Headers of flax as torch would have them: Dense [in, out], Conv HWIO, Embed; others as they are."""
    if not _is_flax(tensors):
        return tensors
    headers = {}
    for name, header in tensors.items():
        head, dot, last = name.rpartition(".")
        order = {2: (1, 0), 4: (3, 2, 0, 1)}.get(len(header.shape) if last == "kernel" else 0)
        shape = header.shape if order is None else tuple(header.shape[axis] for axis in order)
        name = f"{head}{dot}weight" if last in ("kernel", "embedding") else name
        headers[name] = TensorHeader(shape, header.dtype)
    return headers


def _hints(field: str, plain_values: Mapping[str, Any]) -> str:
    """The plain values in the file that bear on a field, as the end of a comment."""
    hints = [f"{place}={value}" for place, value in plain_values.items() if _HINTS[field].search(place)]
    return "; the file has " + ", ".join(hints[:_MAX_HINTS]) if hints else ""


def _conditioning(tensors: Tensors, plain_values: Mapping[str, Any]) -> dict[str, Any]:
    """The section `conditioning`, from the rows of a label embedding or the columns of a one-hot projection."""
    counts = (value for place, value in plain_values.items() if place.endswith(("num_classes", "label_dim")))
    classes = next(counts, None)
    for name, header in tensors.items():
        if len(header.shape) == 2 and _LABELS.search(name) is not None and name.endswith("weight"):
            rows, columns = header.shape
            if classes == columns != rows or "map_label" in name:
                return {"conditioning.kind": "one_hot", "conditioning.classes": columns}
            null = rows - 1 == classes or (classes is None and rows % 10 == 1)
            fields = {"conditioning.kind": "index", "conditioning.classes": rows - 1 if null else rows}
            return fields | ({"conditioning.null": rows - 1} if null else {})
    return {}


def _sample_shape(tensors: Tensors, plain_values: Mapping[str, Any]) -> list[int] | None:
    """Channels from the first convolution; the side from a positional embedding, or from an argument in the file."""
    first = next((header for header in tensors.values() if len(header.shape) == 4), None)
    if first is None:
        return None
    channels, patch = first.shape[1], first.shape[2]
    position = next((h for name, h in tensors.items() if re.search("pos_?emb", name) and len(h.shape) == 3), None)
    if position is not None and math.isqrt(position.shape[1]) ** 2 == position.shape[1]:
        side = math.isqrt(position.shape[1]) * patch
        return [channels, side, side]
    sides = (value for place, value in plain_values.items() if _SIDES.search(place) and isinstance(value, int))
    side = next(sides, 0)
    return [channels, side, side] if side else None


def _yaml(fields: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """Dotted fields as YAML: one line per field, deeper mappings in braces, unknown fields as comments."""
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
        only_comments = all(isinstance(value, _Unknown) for value in section.values())
        lines.append(f"# {head}:" if only_comments else f"{head}:")
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
