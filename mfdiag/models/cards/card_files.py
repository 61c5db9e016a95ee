"""Finding and reading model cards: the user's files and those shipped, one extending another."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from mfdiag.errors import InputError, did_you_mean
from mfdiag.models.cards.card import Card
from mfdiag.yamlfile import field_of, line_of, problem_of, read_yaml

__all__ = ["is_card", "load_card", "shipped_cards"]


class _Layer(NamedTuple):
    """One file of a card that may extend others."""

    path: Path
    root: yaml.Node
    values: dict[str, Any]


def is_card(model: str | None) -> bool:
    """Whether a value of --model names a card."""
    return model is not None and model.endswith((".yaml", ".yml"))


def shipped_cards() -> dict[str, Path]:
    """The cards that come with the package: file name -> file."""
    folder = Path(str(resources.files("mfdiag").joinpath("models", "cards")))
    return {path.name: path for path in sorted(folder.glob("*.yaml"))}


def load_card(name: str) -> Card:
    """The card in the file `name`, else the shipped card of that name, with what it extends filled in.

    Raises InputError naming file, line, field and what is allowed there.
    """
    layers = _layers(_found(name, Path()))
    values: Any = {}
    for layer in reversed(layers):
        values = _merged(values, layer.values)
    try:
        card = Card.model_validate(values)
    except ValidationError as error:
        place, problem = problem_of(error, Card)
        layer = next((one for one in layers if _holds(one.values, place)), layers[0])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise InputError(
            f"{layer.path}, line {line_of(layer.root, place)}, {field_of(place)}{more}: {problem}"
        ) from error
    return card.at(layers[0].path)


def _found(name: str, folder: Path) -> Path:
    """The file `name` in `folder`, else the shipped card of that name."""
    path = folder / name
    if path.is_file():
        return path
    shipped = shipped_cards()
    if name not in shipped:
        raise InputError(f"{path} is no file. {did_you_mean('model card', name, shipped)}")
    return shipped[name]


def _layers(path: Path) -> list[_Layer]:
    """The file, what it extends, and so on."""
    layers: list[_Layer] = []
    while True:
        root, values = read_yaml(path, "a model card", Card)
        layers.append(_Layer(path, root, values))
        above = values.get("extends")
        if above is None:
            return layers
        where = f"{path}, line {line_of(root, ('extends',))}, extends"
        if not isinstance(above, str):
            raise InputError(f"{where}: expected the name of a card, but got {above!r}.")
        try:
            path = _found(above, path.parent)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if any(layer.path.resolve() == path.resolve() for layer in layers):
            raise InputError(f"{where}: {above} extends this card in turn; take one of the two lines out.")


def _merged(below: Any, above: Any) -> Any:
    """`above` over `below`: mappings entry by entry, everything else as a whole."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    return {**below, **{key: _merged(below.get(key), value) for key, value in above.items()}}


def _holds(values: Any, place: tuple[Any, ...]) -> bool:
    for name in place:
        if isinstance(values, Mapping) and name in values:
            values = values[name]
        elif not (isinstance(values, list) and isinstance(name, int) and name < len(values)):
            return False
        else:
            values = values[name]
    return True
