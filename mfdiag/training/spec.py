"""What a training run is: its specification, and YAML files of it with errors that name line and field."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mfdiag.errors import InputError, did_you_mean
from mfdiag.flow.weighting import parse_weighting
from mfdiag.models.description import Architecture
from mfdiag.models.registry import MODELS

__all__ = ["Anchor", "Loss", "TrainSpec", "load_spec"]


def _accepted(parse: Callable[[str], object], text: str) -> str:
    """`text` if `parse` takes it; its InputError becomes the ValueError that pydantic reports with the field."""
    try:
        parse(text)
    except InputError as error:
        raise ValueError(str(error)) from error
    return text


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Anchor(_Strict):
    """The flow-matching anchor lambda E|u(x_t, t - delta, t) - v_c|^2, delta ~ U(0, delta_max) (Algorithm 1).

    YAML calls the coefficient `lambda`, which Python reserves.
    """

    coefficient: float = Field(alias="lambda", ge=0)
    delta_max: float = Field(gt=0, le=1)


class Loss(_Strict):
    """A point (beta, gamma) of the coefficient plane (theory: section 2); (0, 0) is MeanFlow's original loss."""

    beta: float = 0.0
    gamma: float = 0.0
    weighting: str = "none"
    anchor: Anchor | None = None

    @field_validator("weighting")
    @classmethod
    def _known_weighting(cls, value: str) -> str:
        return _accepted(parse_weighting, value)

    @field_validator("anchor", mode="before")
    @classmethod
    def _anchor_or_none(cls, value: Any) -> Any:
        return None if value == "none" else value


class TrainSpec(_Strict):
    """One training run; the same specification gives the same weights on the same machine and number of threads."""

    data: str
    model: Architecture
    times: str
    steps: int = Field(ge=1)
    loss: Loss = Loss()
    batch_size: int = Field(default=1024, ge=1)
    optimizer: Literal["adam"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    log_every: int = Field(default=100, ge=1)
    save_every: int = Field(default=1000, ge=1)

    @field_validator("model")
    @classmethod
    def _known_model(cls, value: Architecture) -> Architecture:
        if value.name not in MODELS:
            raise ValueError(str(did_you_mean("architecture", value.name, MODELS)))
        return value

    @field_validator("times")
    @classmethod
    def _known_times(cls, value: str) -> str:
        from mfdiag.flow.times import parse_times  # brings scipy

        return _accepted(parse_times, value)


_SECTIONS: dict[tuple[int | str, ...], type[BaseModel]] = {
    (): TrainSpec,
    ("model",): Architecture,
    ("loss",): Loss,
    ("loss", "anchor"): Anchor,
}


def load_spec(path: str | os.PathLike[str]) -> TrainSpec:
    """The specification in a YAML file. Raises InputError naming file, line, field, and what is allowed there."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except OSError as error:
        raise InputError(
            f"Expected a training specification at {path}, but {error.strerror}; check the path."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it is no text"
        raise InputError(f"{path}{line}: expected YAML, but {problem}; correct the file.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of {', '.join(TrainSpec.model_fields)}; see sweeps/bundled.yaml.")
    try:
        return TrainSpec.model_validate(values)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        more = f" (and {len(others)} more)" if others else ""
        field = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}, line {_line(root, first['loc'])}, {field}{more}: {_problem(first)}") from error


def _problem(error: Any) -> str:
    *section, name = error["loc"]
    model = _SECTIONS.get(tuple(section), TrainSpec)
    known = [field.alias or key for key, field in model.model_fields.items()]
    if error["type"] == "extra_forbidden":
        return str(did_you_mean("field", str(name), known))
    if error["type"] == "missing":
        return f"this field is missing; add it, the fields are {', '.join(known)}."
    given = "" if isinstance(error["input"], dict) else f", but got {error['input']!r}"
    return (
        error["msg"].removeprefix("Value error, ").removesuffix(".").replace("Input should", "It should") + given + "."
    )


def _line(node: yaml.Node | None, place: tuple[int | str, ...]) -> int:
    """The line, from 1, of the field at `place`, or of the nearest section around it."""
    line = node.start_mark.line if node else 0
    for name in place:
        found = [pair for pair in node.value if pair[0].value == name] if isinstance(node, yaml.MappingNode) else []
        if not found:
            break
        line, node = found[-1][0].start_mark.line, found[-1][1]
    return line + 1
