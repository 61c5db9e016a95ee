"""Model cards: how a checkpoint of another project becomes u(x, r, t, y) of this one, as a validated YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from mfdiag.models.cards.field_types import (
    DENOISED,
    Estimator,
    Factory,
    PathName,
    Prediction,
    Times,
    WeightingName,
    Word,
    leaves,
)
from mfdiag.models.cards.recognition import Recognise

__all__ = [
    "Call",
    "Card",
    "Conditioning",
    "Convention",
    "DataScale",
    "NetworkSection",
    "Objective",
    "Output",
    "Weights",
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkSection(_Section):
    """What builds the network."""

    factory: Factory = Field(
        description="pkg.module:callable, with the repository in the working directory or on PYTHONPATH, or "
        "FILE.py:callable, beside the card or in the working directory; it is run and returns the network",
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="its keyword arguments")
    arguments_from: dict[str, str] = Field(
        default_factory=dict,
        description="keyword argument: dotted place in the checkpoint that holds its value, which may be divided, as "
        "in args.resolution / 8; where the file has it, it replaces the one in `arguments`",
    )


class Weights(_Section):
    """Where the file keeps the weights, and under which names."""

    raw: str = Field(
        default="",
        description="dotted place of the raw weights, which may end in a prefix of tensor names (model.net); empty for "
        "a bare state dict. Tensors named 0, 1, ... are the trained ones in the network's order",
    )
    ema: str | None = Field(default=None, description="the same for their exponential moving average")
    strip: list[str] = Field(default_factory=list, description="prefixes taken off tensor names that begin with them")
    absent: list[str] = Field(
        default_factory=list,
        description="patterns (shell wildcards) of the network's tensors that the file may lack; they keep what the "
        "factory gave them",
    )
    unused: list[str] = Field(
        default_factory=list, description="patterns of tensors in the file that the network does not have"
    )


class Call(_Section):
    """How the network is called.

    Words: `x` the point x_t; `t` the network's time at the point; `r` its time at the other end of the interval; `h`
    the interval's length, t - r >= 0 of this project in either direction; `y` the labels; `omega`, `t_min`, `t_max`
    the sample's guidance scale and interval; `none`. A number, true, false or null is handed over as it is,
    `{value: flow}` a constant string, `{each: 1.0}` a tensor [n] of one number; a list packs a tuple, [x, [t, h]], and
    any other mapping a dictionary, {label: y}.
    """

    arguments: list[Word] = Field(default=["x", "r", "t"], description="by position: words, constants, lists")
    keywords: dict[str, Word] = Field(default_factory=dict, description="by name, likewise")
    method: str = Field(default="forward", description="the method that is called")
    time_scale: float = Field(default=1.0, description="factor on every time handed over, h included")
    layout: Literal["NCHW", "NHWC"] = Field(default="NCHW", description="where the network has its channels")


class Convention(_Section):
    """Times and path of the network."""

    direction: Literal["D0", "D1"] = Field(
        default="D0", description="D0: data at time 0; D1: data at time 1, which reverses times and velocities"
    )
    path: PathName = Field(default="linear", description="as --path, in this project's direction")
    noise_scale: float = Field(default=1.0, gt=0, description="standard deviation of the Gaussian noise x_1")
    time_clamp: tuple[float, float] | None = Field(
        default=None, description="the network's own times r and t are kept inside, before time_scale"
    )


class Output(_Section):
    """What the network returns."""

    part: int | str | None = Field(
        default=None, description="index, key or attribute of the prediction in what is returned; null: all of it"
    )
    prediction: Prediction = Field(
        default="u",
        description="u velocity, else as --prediction; denoised:[floor=0] is D(x_t / alpha; sigma / alpha) of EDM, "
        "which takes its times as noise levels",
    )
    average: bool = Field(
        default=True, description="false: an instantaneous velocity, as of flow matching, whatever r is"
    )
    velocity_head: int | str | None = Field(
        default=None, description="part that holds the head's instantaneous velocity, for estimators that use it"
    )


class Conditioning(_Section):
    """Labels."""

    kind: Literal["none", "index", "one_hot"] = Field(default="none", description="how `y` is handed over")
    classes: int = Field(default=0, ge=0, description="number of classes, the null label not counted")
    null: int | None = Field(
        default=None, description="index of the null label; in one_hot, one beyond the columns is a row of zeros"
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_a_name(cls, values: Any) -> Any:
        """In YAML the key `null` is no text but nothing."""
        return (
            {"null" if key is None else key: value for key, value in values.items()}
            if isinstance(values, dict)
            else values
        )

    @model_validator(mode="after")
    def _whole(self) -> Conditioning:
        if (self.kind == "none") != (self.classes == 0):
            raise ValueError("kind index or one_hot needs classes of at least 1, kind none has no classes")
        return self


class Objective(_Section):
    """What the network was trained on: defaults of the run, each replaced by the option of its name."""

    estimator: Estimator | None = Field(default=None, description="as --estimator")
    proxy: str | None = Field(default=None, description="as --proxy")
    weighting: WeightingName | None = Field(default=None, description="as --weighting")
    times: Times | None = Field(default=None, description="as --times")
    derivative: str | None = Field(default=None, description="as --derivative")


class DataScale(_Section):
    """The scale the network sees its data on; the data set itself is named by --data."""

    shape: tuple[int, ...] | None = Field(default=None, description="of one sample, channels first")
    scale: float | None = Field(default=None, description="factor the stored data are multiplied by")
    mean: float | list[float] | None = Field(default=None, description="taken off first, one or one per channel")
    std: float | list[float] | None = Field(default=None, description="divided by then, one or one per channel")
    coupling: str = Field(default="independent", description="as --coupling")
    source: str = Field(default="gaussian", description="as --source")

    @property
    def statistics(self) -> dict[str, float | list[float]]:
        """Those of scale, mean and std that are given."""
        found = {"scale": self.scale, "mean": self.mean, "std": self.std}
        return {name: value for name, value in found.items() if value is not None}


class Card(_Section):
    """A model card."""

    format: Literal[1] = 1
    extends: str | None = Field(
        default=None, description="a shipped card, or a file beside this one, whose fields hold where this has none"
    )
    about: str = Field(default="", description="one line: what, and whose")
    source: str = Field(default="", description="URL and commit the facts were read from")
    network: NetworkSection
    weights: Weights = Weights()
    call: Call = Call()
    convention: Convention = Convention()
    output: Output = Output()
    conditioning: Conditioning = Conditioning()
    guidance: str | None = Field(default=None, description="as --guidance")
    objective: Objective = Objective()
    data: DataScale = DataScale()
    recognise: Recognise | None = Field(
        default=None, description="shipped cards: by what `mfdiag inspect` tells that a file is of this kind"
    )

    _file: Path = PrivateAttr(default=Path("card"))

    def at(self, file: Path) -> Card:
        """The same card, read from `file`."""
        found = self.model_copy()
        found._file = file
        return found

    @property
    def name(self) -> str:
        """What notes and errors call the card."""
        return self._file.name

    @property
    def factory(self) -> str:
        """The factory, with FILE.py beside the card if it is there."""
        place, _, attribute = self.network.factory.rpartition(":")
        beside = self._file.parent / place
        return f"{beside}:{attribute}" if place.endswith(".py") and beside.is_file() else self.network.factory

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        words = self.words
        if not {"x", "t"} <= words:
            raise ValueError("call must hand over x and t")
        if self.output.average and not words & {"r", "h"}:
            raise ValueError("a network that is told neither r nor h gives no average: say output.average: false")
        if ("y" in words) != (self.conditioning.kind != "none"):
            raise ValueError("call must hand over y where conditioning says its kind and classes, and only there")
        if self.predicts_denoised and self.convention.direction == "D1":
            raise ValueError("prediction denoised has noise levels for times, which have no direction D1: say D0")
        low, high = self.convention.time_clamp or (0.0, 1.0)
        if not 0 <= low < high <= 1:
            raise ValueError(f"time_clamp must be two times 0 <= low < high <= 1, got {low:g}, {high:g}")
        if self.predicts_denoised and high == 1:
            raise ValueError("prediction denoised has an infinite noise level at t = 1: give a time_clamp below it")
        return self

    @property
    def words(self) -> set[Any]:
        """All that the call hands over."""
        return set(leaves([*self.call.arguments, *self.call.keywords.values()]))

    @property
    def predicts_denoised(self) -> bool:
        """Whether the network is a denoiser whose times are noise levels."""
        return self.output.prediction.partition(":")[0] == DENOISED

    @property
    def axes(self) -> dict[str, str]:
        """What the run takes from the card where no option says otherwise, by option."""
        source, noise = self.data.source, self.convention.noise_scale
        return {
            "source": f"gaussian:{noise!r}" if source == "gaussian" and noise != 1 else source,
            "coupling": self.data.coupling,
            "path": self.convention.path,
            "prediction": self.prediction,
        }

    @property
    def prediction(self) -> str:
        """What the adapted network predicts, as --prediction: a denoiser's x, with no floor unless it has one."""
        _, _, floor = self.output.prediction.partition(":")
        return f"x:{floor or 0}" if self.predicts_denoised else self.output.prediction
