"""What one training run is: its specification, validated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from mfdiag.errors import InputError, did_you_mean
from mfdiag.flow.weighting import parse_weighting
from mfdiag.models.description import Architecture
from mfdiag.models.networks.registry import MODELS, PREDICTIONS
from mfdiag.usercode import is_user_code

__all__ = ["Anchor", "Loss", "Optimizer", "Schedule", "TrainSpec"]


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
    """The flow-matching anchor lambda E|u(x_t, t - delta, t) - v_c|^2, delta ~ U(delta_min, delta_max) (Algorithm 1).

    YAML calls the coefficient `lambda`, which Python reserves.
    """

    coefficient: float = Field(alias="lambda", ge=0)
    delta_min: float = Field(default=0, ge=0, le=1)
    delta_max: float = Field(gt=0, le=1)

    @field_validator("delta_max")
    @classmethod
    def _ordered(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("delta_min", 0):
            raise ValueError("delta_max must not be below delta_min")
        return value


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


class Optimizer(_Strict):
    """Adam (arXiv 1412.6980), AdamW (1711.05101; decoupled weight decay), or SGD with momentum `betas[0]`.

    `clip` bounds the norm of the gradient over all parameters; none by default.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0, ge=0)
    clip: float | None = Field(default=None, gt=0)

    @field_validator("betas")
    @classmethod
    def _decays(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("betas must lie in [0, 1)")
        return value

    @field_validator("weight_decay")
    @classmethod
    def _decoupled(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("name") != "adamw":
            raise ValueError("weight_decay is decoupled and belongs to adamw")
        return value


class Schedule(_Strict):
    """The learning rate over training: linear from 0 over `warmup` steps, then constant, or falling to 0 at the end."""

    name: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = Field(default=0, ge=0)


class TrainSpec(_Strict):
    """One training run; the same specification gives the same weights on the same machine and number of threads."""

    data: str
    model: Architecture
    times: str
    source: str = "gaussian"
    coupling: str = "independent"
    path: str = "linear"
    prediction: str = "u"
    steps: int = Field(ge=1)
    loss: Loss = Loss()
    batch_size: int = Field(default=1024, ge=1)
    optimizer: Optimizer = Optimizer()
    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: Schedule = Schedule()
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    log_every: int = Field(default=100, ge=1)
    save_every: int = Field(default=1000, ge=1)
    measure_every: int = Field(default=0, ge=0)
    measure_samples: int = Field(default=1024, ge=128)

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

    @field_validator("source", "coupling", "path")
    @classmethod
    def _known_axis(cls, value: str, info: ValidationInfo) -> str:
        from mfdiag.flow.couplings import COUPLINGS
        from mfdiag.flow.paths import PATHS
        from mfdiag.flow.sources import SOURCES

        known = {"source": SOURCES, "coupling": COUPLINGS, "path": PATHS}[str(info.field_name)]
        if not is_user_code(value) and value.partition(":")[0] not in known:
            raise ValueError(str(did_you_mean(str(info.field_name), value.partition(":")[0], known)))
        return value

    @field_validator("prediction")
    @classmethod
    def _known_prediction(cls, value: str) -> str:
        if value.partition(":")[0] not in PREDICTIONS:
            raise ValueError(str(did_you_mean("prediction", value, PREDICTIONS)))
        return value

    @property
    def code(self) -> list[str]:
        """Code of the user's that the specification names, which runs when it is trained."""
        return [value for value in (self.source, self.path) if is_user_code(value)]

    @field_validator("optimizer", "schedule", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value
