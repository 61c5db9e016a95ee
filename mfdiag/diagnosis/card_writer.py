"""A model card for a reading, which loads the file that it was measured on and calls it in that convention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mfdiag.diagnosis.candidate import Candidate
from mfdiag.flow.data.datasets import FiniteData, MomentsData
from mfdiag.flow.data.stored_data import is_stored_data
from mfdiag.measures.conventions.data_scales import stored_scaling
from mfdiag.models.cards.card import Card
from mfdiag.models.cards.readings import Reading
from mfdiag.models.checkpoint import LoadedModel
from mfdiag.models.formats.weight_names import place_of, split_copies
from mfdiag.models.networks.registry import MODELS
from mfdiag.storage import atomic_write

__all__ = ["write_card"]


def write_card(candidate: Candidate, reading: Reading, path: Path) -> str:
    """Write the card of a reading.

    Args:
        candidate: What the card is made from.
        reading: The convention.
        path: The file.

    Returns:
        A note that says how to use the card, or why there is none.
    """
    network = _network(candidate)
    if network is None:
        return (
            "No card is written: the file holds its network as a program, which a card cannot build. Run this again "
            "with --model FILE.py:factory that builds the network, or export the network so that it takes (x, r, t)."
        )
    subject, card = candidate.subject, candidate.declared.card_of(reading)
    values = card.model_dump(mode="json", exclude_defaults=True)
    values.pop("extends", None)
    values.pop("recognise", None)
    values["about"] = card.about or f"{subject.checkpoint}, as identified by mfdiag identify"
    values["network"] = network
    if candidate.loaded.card is None:
        values["weights"] = _weights(candidate.loaded)
    values["guidance"] = None if subject.guidance is None else subject.guidance.name
    values["objective"] = {**values.get("objective", {}), "times": subject.times.name}
    data, note = _data(candidate, reading, values.get("data", {}))
    values["data"] = data
    values = {name: value for name, value in values.items() if value not in (None, {}, [])}
    Card.model_validate(values)
    with atomic_write(path) as temporary:
        temporary.write_text(yaml.safe_dump(values, sort_keys=False, width=120), encoding="utf-8")
    weights = "" if reading.weights == "raw" else f" --weights {reading.weights}"
    return f"the card of the best convention: pass --model {path}{weights}{note}."


def _network(candidate: Candidate) -> dict[str, Any] | None:
    """The section `network`; None where only the file itself holds the network."""
    loaded = candidate.loaded
    if loaded.card is not None:
        section = loaded.card.network.model_dump(mode="json", exclude_defaults=True)
        return section | {"factory": _absolute(loaded.card.factory)}
    if candidate.model is not None:
        return {"factory": _absolute(candidate.model)}
    if loaded.description is not None:
        architecture = loaded.description.architecture
        return {"factory": MODELS[architecture.name][0], "arguments": architecture.arguments}
    return None


def _absolute(factory: str) -> str:
    """A factory whose FILE.py does not depend on the working directory."""
    place, _, name = factory.rpartition(":")
    return f"{Path(place).resolve()}:{name}" if place.endswith(".py") else factory


def _weights(loaded: LoadedModel) -> dict[str, Any]:
    """The section `weights`: where the sets that were loaded are."""
    if loaded.description is not None:
        return {"raw": "raw", **({"ema": "ema"} if loaded.has_weights("ema") else {})}
    places = split_copies(loaded.state)
    section = {key: place_of(places, key) for key in ("raw", "ema")}
    return {key: place for key, place in section.items() if place}


def _data(candidate: Candidate, reading: Reading, declared: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The section `data`, and what must be said of it."""
    subject = candidate.subject
    section: dict[str, Any] = {key: declared[key] for key in ("shape",) if key in declared}
    section |= {
        "coupling": subject.coupling.name,
        "source": "gaussian" if subject.source is None else subject.source.name,
    }
    data = subject.data
    if not isinstance(data, FiniteData | MomentsData) or not is_stored_data(data.name):
        changed = (reading.factor, reading.shift) != (1.0, 0.0)
        return section, (
            f"; {data.name} has no file, so first save its samples times {reading.factor:.6g} plus {reading.shift:.6g} "
            "and pass them as --data"
            if changed
            else ""
        )
    factor, shift = stored_scaling(data)
    factor, shift = reading.factor * factor, reading.factor * shift + reading.shift
    section |= {"mean": _numbers(-shift / factor), "std": _numbers(1 / factor)}
    path, colon, _ = data.name.partition(":")
    replaces = any(f"{key}=" in data.name for key in ("scale", "mean", "std", "statistics"))
    return section, f"; leave scale, mean, std and statistics out of --data {path}, since the card has them" if (
        colon and replaces
    ) else ""


def _numbers(values: np.ndarray) -> float | list[float]:
    """One number, or one per channel."""
    return float(values.reshape(())) if values.size == 1 else [float(value) for value in values.reshape(-1)]
