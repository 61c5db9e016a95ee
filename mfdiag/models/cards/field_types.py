"""What the fields of a model card may hold: words, and specifications that their own parsers take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from mfdiag.errors import InputError, did_you_mean
from mfdiag.models.networks.registry import PREDICTIONS
from mfdiag.usercode import is_user_code

__all__ = [
    "DENOISED",
    "WORDS",
    "Estimator",
    "Factory",
    "PathName",
    "Prediction",
    "Times",
    "WeightingName",
    "Word",
    "leaves",
]

WORDS = ("x", "r", "t", "h", "y", "omega", "t_min", "t_max", "none")
"""What `call` hands over by name; see `mfdiag.models.cards.card.Call`."""

DENOISED = "denoised"
"""A prediction only cards have: D(z; sigma) of arXiv 2206.00364, whose input is rescaled as well."""


def _word(value: Any) -> Any:
    """`value` if it says what to hand over: a word, a constant, `{each: number}`, or a list or mapping of such."""
    if isinstance(value, list):
        return [_word(item) for item in value]
    if isinstance(value, str) and value not in WORDS:
        raise ValueError(str(did_you_mean("word", value, WORDS)).removesuffix("."))
    if isinstance(value, dict) and value.keys() == {"each"} and not isinstance(value["each"], int | float):
        raise ValueError("expected {each: number}")
    if isinstance(value, dict) and value.keys() not in ({"each"}, {"value"}):
        return {name: _word(item) for name, item in value.items()}
    return value


def _factory(text: Any) -> Any:
    place, _, name = str(text).rpartition(":")
    if not (place and name.isidentifier()):
        raise ValueError("expected pkg.module:callable or FILE.py:callable")
    return text


def _parsed(parse: Callable[[str], object]) -> BeforeValidator:
    """A specification that `parse` takes."""

    def check(text: Any) -> Any:
        if isinstance(text, str) and not is_user_code(text):
            try:
                parse(text)
            except InputError as error:
                raise ValueError(str(error).removesuffix(".")) from error
        return text

    return BeforeValidator(check)


def _path(text: str) -> None:
    from mfdiag.flow.paths import parse_path

    parse_path(text)


def _times(text: str) -> None:
    from mfdiag.flow.times import parse_times

    parse_times(text)


def _weighting(text: str) -> None:
    from mfdiag.flow.weighting import parse_weighting

    parse_weighting(text)


def _estimator(text: str) -> None:
    from mfdiag.estimators import find_estimator

    find_estimator(text)


def _prediction(text: str) -> None:
    name = text.partition(":")[0]
    if name not in (*PREDICTIONS, DENOISED):
        raise did_you_mean("prediction", name, (*PREDICTIONS, DENOISED))


Word = Annotated[
    Any,
    BeforeValidator(_word),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": list(WORDS)},
                {"type": ["number", "boolean", "null"]},
                {"type": "array"},
                {"type": "object"},
            ]
        }
    ),
]


def leaves(words: Any) -> list[Any]:
    """The words in lists and mappings of them."""
    if isinstance(words, dict):
        return [] if words.keys() in ({"each"}, {"value"}) else leaves(list(words.values()))
    return [leaf for word in words for leaf in leaves(word)] if isinstance(words, list) else [words]


Factory = Annotated[str, BeforeValidator(_factory)]
PathName = Annotated[str, _parsed(_path)]
Prediction = Annotated[str, _parsed(_prediction)]
Times = Annotated[str, _parsed(_times)]
WeightingName = Annotated[str, _parsed(_weighting)]
Estimator = Annotated[str, _parsed(_estimator)]
