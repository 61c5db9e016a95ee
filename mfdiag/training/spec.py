"""The specification of one training run, validated. YAML files of `mfdiag train` use its field names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from mfdiag.errors import InputError, did_you_mean
from mfdiag.flow.data.user_data import is_user_data
from mfdiag.flow.time_shares import current_spelling
from mfdiag.flow.weighting import parse_weighting
from mfdiag.models.description import Architecture
from mfdiag.models.networks.registry import MODELS, PREDICTIONS
from mfdiag.training.trainable import trainable_estimator
from mfdiag.usercode import is_user_code

__all__ = ["AnchorSpec", "BetaSpec", "LossSpec", "OptimizerSpec", "ScheduleSpec", "TrainSpec"]


def _require_parsable(parse: Callable[[str], object], text: str) -> str:
    """`text` if `parse` accepts it; an InputError becomes the ValueError that pydantic reports with the field."""
    try:
        parse(text)
    except InputError as error:
        raise ValueError(str(error)) from error
    return text


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class AnchorSpec(_Strict):
    """The flow-matching anchor lambda E|u(x_t, t - delta, t) - v_c|^2 (arXiv 2605.09235, Algorithm 1).

    Attributes:
        coefficient: lambda, which is its name in YAML too; Python reserves the word.
        delta_min: Smallest delta, in [0, 1]; delta is uniform between the two.
        delta_max: Largest delta, in (0, 1].
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


class BetaSpec(_Strict):
    """How the tangent coefficient varies over (r, t) and over training; each part multiplies `LossSpec.beta`.

    Attributes:
        gap: Interval of t - r in which beta applies; beta is 0 outside.
        t: Interval of t in which beta applies; beta is 0 outside.
        cells: Factors by cell of (r, t), rows by r, on equal bins of [0, 1]; None for 1 everywhere.
        end: Factor at the last step, reached linearly from 1.
    """

    gap: tuple[float, float] = (0, 1)
    t: tuple[float, float] = (0, 1)
    cells: tuple[tuple[float, ...], ...] | None = None
    end: float = 1

    @field_validator("gap", "t")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1] <= 1:
            raise ValueError("takes two numbers low <= high in [0, 1]")
        return value

    @field_validator("cells")
    @classmethod
    def _rectangular(cls, value: tuple[tuple[float, ...], ...] | None) -> tuple[tuple[float, ...], ...] | None:
        if value is not None and (not value or len({len(row) for row in value}) > 1 or not value[0]):
            raise ValueError("takes rows of equal length, one for each bin of r, with a number for each bin of t")
        return value


class LossSpec(_Strict):
    """A point of the coefficient plane (docs/theory.md#plane), or another method of the family.

    The point (0, 0) is MeanFlow's original loss.

    Attributes:
        beta: Tangent coefficient.
        gamma: Target coefficient.
        weighting: Adaptive weight of each sample, as `--weighting` takes it.
        anchor: The flow-matching anchor; None or "none" for no anchor.
        proxy: Where vhat comes from: the averaged weights ("ema"), the network itself ("self"), both at (x_t, t, t), or
            the "exact" posterior velocity, where the data have a closed form or are few.
        beta_by: How beta varies over (r, t) and over training; None for a constant.
        estimator: A method that is no point of the plane, as `--estimator` takes it; None for the plane.
    """

    beta: float = 0.0
    gamma: float = 0.0
    weighting: str = "none"
    anchor: AnchorSpec | None = None
    proxy: Literal["ema", "self", "exact"] = "ema"
    beta_by: BetaSpec | None = None
    estimator: str | None = None

    @field_validator("estimator")
    @classmethod
    def _trainable(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        _require_parsable(trainable_estimator, value)
        if any(info.data.get(name) for name in ("beta", "gamma", "anchor", "beta_by")) or info.data["proxy"] != "ema":
            raise ValueError(
                "estimator excludes beta, gamma and anchor, as well as proxy and beta_by: they belong to the plane"
            )
        return value

    @field_validator("weighting")
    @classmethod
    def _known_weighting(cls, value: str) -> str:
        return _require_parsable(parse_weighting, value)

    @field_validator("anchor", mode="before")
    @classmethod
    def _anchor_or_none(cls, value: Any) -> Any:
        return None if value == "none" else value


class OptimizerSpec(_Strict):
    """Adam (arXiv 1412.6980), AdamW (arXiv 1711.05101), or SGD with momentum.

    Attributes:
        name: Which one.
        betas: Decay rates of the first and second moment, in [0, 1); for SGD the first is the momentum.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay; for adamw only.
        clip: Largest norm of the gradient over all parameters; None for no clipping.
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
            raise ValueError("weight_decay needs the optimizer adamw")
        return value


class ScheduleSpec(_Strict):
    """The learning rate over training.

    Attributes:
        name: After the warm-up, "constant", or falling to 0 at the end as a "cosine" or "linear" function.
        warmup: Steps over which the rate first rises linearly from 0.
    """

    name: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = Field(default=0, ge=0)


class TrainSpec(_Strict):
    """One training run. Equal specifications give equal weights on the same machine with the same number of threads.

    Attributes:
        data: Data set, as `--data` takes it.
        model: A built-in architecture and its arguments.
        times: Sampler of (r, t), as `--times` takes it.
        source: Distribution of the noise, as `--source` takes it.
        coupling: How noise and data are paired, as `--coupling` takes it.
        path: Path from data to noise, as `--path` takes it.
        prediction: What the network predicts, as `--prediction` takes it.
        steps: Number of training steps.
        loss: Point of the plane, weighting and anchor.
        batch_size: Samples per step.
        optimizer: Optimizer, or its name alone.
        learning_rate: Largest learning rate.
        schedule: Learning rate over training, or its name alone.
        ema_decay: Decay of the averaged weights per step, in [0, 1).
        seed: Determines weights and samples.
        log_every: Steps between entries of loss and gradient norm in the log.
        save_every: Steps between saved states.
        keep_every: Steps between checkpoints that stay beside the last one, in folders `step=N`; 0 for none.
        measure_every: Steps between measurements of the gradient's variance; 0 for none.
        measure_samples: Samples of one such measurement.
    """

    data: str
    model: Architecture
    times: str
    source: str = "gaussian"
    coupling: str = "independent"
    path: str = "linear"
    prediction: str = "u"
    steps: int = Field(ge=1, le=10**10)
    loss: LossSpec = LossSpec()
    batch_size: int = Field(default=1024, ge=1, le=2**22)
    optimizer: OptimizerSpec = OptimizerSpec()
    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: ScheduleSpec = ScheduleSpec()
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    seed: int = Field(default=0, ge=0, le=2**62)
    log_every: int = Field(default=100, ge=1, le=10**10)
    save_every: int = Field(default=1000, ge=1, le=10**10)
    keep_every: int = Field(default=0, ge=0, le=10**10)
    measure_every: int = Field(default=0, ge=0, le=10**10)
    measure_samples: int = Field(default=1024, ge=128, le=2**26)

    @field_validator("model")
    @classmethod
    def _known_model(cls, value: Architecture) -> Architecture:
        if value.name not in MODELS:
            raise ValueError(str(did_you_mean("architecture", value.name, MODELS)))
        return value

    @field_validator("times")
    @classmethod
    def _known_times(cls, value: str, info: ValidationInfo) -> str:
        """Spell the share of pairs with r != t by name; without a name, it means the opposite in older files."""
        from mfdiag.flow.times import parse_times  # imports scipy

        _require_parsable(parse_times, value)
        return current_spelling(value, stored=bool(info.context and info.context["stored"]))

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
        """User code that the specification names and training executes."""
        named = [value for value in (self.source, self.path) if is_user_code(value)]
        teacher = self.coupling.partition(":")[2].split(",")[0].rpartition("@")[2]  # reflow:PATH@CODE, or @CARD
        if is_user_code(teacher) or teacher.endswith((".yaml", ".yml")):
            named.append(teacher)
        return [*named, self.data] if is_user_data(self.data) else named

    @field_validator("optimizer", "schedule", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value
