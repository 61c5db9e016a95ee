"""Types of the fields of a model card: words of a call, and specifications that their own parsers check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from mfdiag.errors import InputError, did_you_mean
from mfdiag.models.networks.registry import PREDICTIONS
from mfdiag.usercode import is_user_code

__all__ = [
    "DENOISED",
    "SPECIAL",
    "FactorySpec",
    "PathSpec",
    "PredictionSpec",
    "TimesSpec",
    "WeightingSpec",
    "Word",
    "conditions_in",
    "is_joined",
    "leaves",
]

_WORDS = ("x", "r", "t", "h", "y", "dropped", "omega", "t_min", "t_max", "none")
"""What `call` can pass by name; see `mfdiag.models.cards.card.Call`."""

DENOISED = "denoised"
"""A prediction that only cards have: D(z; sigma) of arXiv 2206.00364, whose input is rescaled as well."""


SPECIAL: tuple[set[str], ...] = ({"each"}, {"value"}, {"condition"})
"""Keys of mappings in `call` that stand for one value."""


def _word(value: Any) -> Any:
    """Check what a call passes: a word, a constant, `{each: number}`, a condition, or a list or mapping of these."""
    if isinstance(value, list):
        return [_word(item) for item in value]
    if isinstance(value, str) and value not in _WORDS:
        raise ValueError(str(did_you_mean("word", value, _WORDS)).removesuffix("."))
    if isinstance(value, dict) and value.keys() == {"each"} and not isinstance(value["each"], int | float):
        raise ValueError("expected {each: number}")
    if isinstance(value, dict) and value.keys() == {"condition"} and not isinstance(value["condition"], str):
        raise ValueError("expected {condition: NAME} with a name of call.conditions")
    if is_joined(value) and not value["cat"]:
        raise ValueError("expected {cat: [WORD, ...]} with the words to join, as in {cat: [t, r]}")
    if isinstance(value, dict) and value.keys() not in SPECIAL:
        return {name: _word(item) for name, item in value.items()}
    return value


def is_joined(word: Any) -> bool:
    """Whether a word stands for others joined in one tensor; `{cat: x}` is a dictionary."""
    return isinstance(word, dict) and word.keys() == {"cat"} and isinstance(word["cat"], list)


def _factory(text: Any) -> Any:
    place, _, name = str(text).rpartition(":")
    if not (place and name.isidentifier()):
        raise ValueError("expected pkg.module:callable or FILE.py:callable")
    return text


def _checked_by(parse: Callable[[str], object]) -> BeforeValidator:
    """A validator that accepts what `parse` accepts, and the user's own code, which it does not run."""

    def check(text: Any) -> Any:
        if isinstance(text, str) and not is_user_code(text):
            try:
                parse(text)
            except InputError as error:
                raise ValueError(str(error).removesuffix(".")) from error
        return text

    return BeforeValidator(check)


# The next three import when they are called, since flow.times needs scipy and `mfdiag inspect` checks no card.


def _path(text: str) -> None:
    from mfdiag.flow.paths import parse_path

    parse_path(text)


def _times(text: str) -> None:
    from mfdiag.flow.times import parse_times

    parse_times(text)


def _weighting(text: str) -> None:
    from mfdiag.flow.weighting import parse_weighting

    parse_weighting(text)


def _prediction(text: str) -> None:
    name = text.partition(":")[0]
    if name not in (*PREDICTIONS, DENOISED):
        raise did_you_mean("prediction", name, (*PREDICTIONS, DENOISED))


def leaves(words: Any) -> list[Any]:
    """The words inside nested lists and mappings."""
    if isinstance(words, dict):
        return [] if words.keys() in SPECIAL else leaves(list(words.values()))
    return [leaf for word in words for leaf in leaves(word)] if isinstance(words, list) else [words]


def conditions_in(words: Any) -> set[str]:
    """The names of conditions inside nested lists and mappings of a call."""
    if isinstance(words, dict):
        return {words["condition"]} if words.keys() == {"condition"} else conditions_in(list(words.values()))
    return set().union(*map(conditions_in, words)) if isinstance(words, list) else set()


Word = Annotated[
    Any,
    BeforeValidator(_word),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": list(_WORDS)},
                {"type": ["number", "boolean", "null"]},
                {"type": "array"},
                {"type": "object"},
            ]
        }
    ),
]
FactorySpec = Annotated[str, BeforeValidator(_factory)]
PathSpec = Annotated[str, _checked_by(_path)]
PredictionSpec = Annotated[str, _checked_by(_prediction)]
TimesSpec = Annotated[str, _checked_by(_times)]
WeightingSpec = Annotated[str, _checked_by(_weighting)]
