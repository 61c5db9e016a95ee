"""Finding and reading model cards: the user's files and those that ship, one extending another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from mfdiag.errors import InputError, did_you_mean
from mfdiag.inputs import note_read
from mfdiag.models.cards.card import Card
from mfdiag.storage import is_file
from mfdiag.yamlfile import field_of, line_of, problem_of, read_yaml

__all__ = ["errors_in_field", "is_card", "load_card", "shipped_cards"]


class _Layer(NamedTuple):
    """One file of a card that may extend others."""

    path: Path
    root: yaml.Node
    values: dict[str, Any]


def is_card(model: str | None) -> bool:
    """Whether a value of --model is the name of a card."""
    return model is not None and model.endswith((".yaml", ".yml"))


def shipped_cards() -> dict[str, Path]:
    """File name -> file of the cards that come with mfdiag."""
    return {path.name: path for path in sorted(_folder().glob("*.yaml"))}


def _folder() -> Path:
    return Path(str(resources.files("mfdiag").joinpath("models", "cards")))


def load_card(name: str) -> Card:
    """Read the card in the file `name`, or the shipped card of that name, with the cards that it extends.

    Raises InputError that names file, line and field, and says what the field accepts.
    """
    layers = _layers(_card_file(name, Path()))
    values: Any = {}
    for layer in reversed(layers):
        values = _merged(values, layer.values)
    try:
        card = Card.model_validate(values)
    except ValidationError as error:
        place, problem = problem_of(error, Card)
        more = f" (first of {error.error_count()} errors)" if error.error_count() > 1 else ""
        raise InputError(f"{_located(layers, place)}{more}: {problem}") from error
    return card.in_file(layers[0].path)


@contextmanager
def errors_in_field(name: str, field: str) -> Iterator[None]:
    """Name file, line and field in an InputError raised inside, as `load_card` does.

    For a field that this package cannot check, because its parser belongs to a later one: the code that uses the field
    parses it in this context. `name` is the card, as for `load_card`; `field` is dotted, as in "objective.estimator".
    """
    try:
        yield
    except InputError as error:
        layers = _layers(_card_file(name, Path()))
        raise InputError(f"{_located(layers, tuple(field.split('.')))}: {error}") from error


def _located(layers: list[_Layer], place: tuple[Any, ...]) -> str:
    """File, line and field of a value: in the first layer that has it, since that one overrides the others."""
    layer = next((layer for layer in layers if _contains(layer.values, place)), layers[0])
    return f"{layer.path}, line {line_of(layer.root, place)}, {field_of(place)}"


def _card_file(name: str, folder: Path) -> Path:
    """The file `name` in `folder`, or the shipped card of that name."""
    path = folder / name
    if is_file(path):
        return path
    shipped = shipped_cards()
    if name not in shipped:
        unknown = did_you_mean("model card", name, shipped)
        raise InputError(f"{unknown} Or pass the path of your own card: there is no file {path}.")
    return shipped[name]


def _layers(path: Path) -> list[_Layer]:
    """The file, the card it extends, the card that one extends, and so on."""
    layers: list[_Layer] = []
    while True:
        root, values = read_yaml(path, "a model card", Card)
        layers.append(_Layer(path, root, values))
        if _folder() not in path.parents:  # a card that ships has the version of mfdiag
            note_read(path, kind="card")
        extended = values.get("extends")
        if extended is None:
            return layers
        where = f"{path}, line {line_of(root, ('extends',))}, extends"
        if not isinstance(extended, str):
            raise InputError(f"{where}: expected the name of a card, but got {extended!r}.")
        try:
            path = _card_file(extended, path.parent)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if any(layer.path.resolve() == path.resolve() for layer in layers):
            raise InputError(f"{where}: {extended} extends this card in turn; remove one of the two lines.")


def _merged(lower: Any, upper: Any) -> Any:
    """`upper` over `lower`: mappings are merged entry by entry, anything else is replaced."""
    if not (isinstance(lower, Mapping) and isinstance(upper, Mapping)):
        return upper
    return {**lower, **{key: _merged(lower.get(key), value) for key, value in upper.items()}}


def _contains(values: Any, place: tuple[Any, ...]) -> bool:
    for name in place:
        in_mapping = isinstance(values, Mapping) and name in values
        in_list = isinstance(values, list) and isinstance(name, int) and name < len(values)
        if not (in_mapping or in_list):
            return False
        values = values[name]
    return True
