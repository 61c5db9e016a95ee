"""What a checkpoint written by mfdiag says about itself, so that it needs no other file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from mfdiag.errors import InputError
from mfdiag.flow.time_shares import current_spelling

__all__ = ["METADATA_KEY", "Architecture", "Description", "parse_description"]

METADATA_KEY = "mfdiag"

# fields that version 0.1 does not know, with the values it assumed
_DEFAULTS_OF_0_1 = {"source": "gaussian", "coupling": "independent", "prediction": "u"}


class Architecture(BaseModel):
    """A built-in architecture: its name in `mfdiag.models.networks.registry.MODELS`, and its constructor arguments."""

    model_config = ConfigDict(extra="forbid")

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class Description(BaseModel):
    """The entry "mfdiag" in the metadata of a checkpoint, stored as JSON."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    architecture: Architecture
    path: str = "linear"
    source: str = "gaussian"
    coupling: str = "independent"
    prediction: str = "u"
    times: str
    data: str
    step: int = Field(ge=0, lt=2**63)
    ema_decay: float | None = Field(default=None, ge=0, lt=1)
    seed: int = Field(ge=-(2**63), lt=2**63)
    specification: dict[str, Any] = Field(default_factory=dict)

    @field_validator("times")
    @classmethod
    def _share_by_name(cls, value: str, info: ValidationInfo) -> str:
        """Spell the share of pairs with r != t by name; without a name, it means the opposite in older files."""
        return current_spelling(value, stored=bool(info.context and info.context["stored"]))

    @model_serializer(mode="wrap")
    def _readable_by_0_1(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out newer fields that have the values version 0.1 assumed, so that it can read the file."""
        return {name: value for name, value in handler(self).items() if (name, value) not in _DEFAULTS_OF_0_1.items()}


def parse_description(text: str, source: object) -> Description:
    """The description in the JSON `text` of file `source`. Raises InputError that names the first wrong field."""
    try:
        return Description.model_validate_json(text, context={"stored": True})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the whole entry"
        raise InputError(
            f"Expected valid {METADATA_KEY!r} metadata in {source}, but {field} is wrong: "
            f"{first['msg'].lower()}; write the file again with mfdiag, or remove that metadata and pass --model."
        ) from error
