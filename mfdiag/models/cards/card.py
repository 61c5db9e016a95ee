"""Model cards: how a checkpoint of another project becomes u(x, r, t, y) of mfdiag, as a validated YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    WithJsonSchema,
    model_validator,
)

from mfdiag.models.cards.field_types import (
    DENOISED,
    FactorySpec,
    PathSpec,
    PredictionSpec,
    TimesSpec,
    WeightingSpec,
    Word,
    conditions_in,
    leaves,
)
from mfdiag.models.cards.recognition import Recognise
from mfdiag.storage import is_file

__all__ = [
    "KEEP",
    "Call",
    "Card",
    "ConditionInput",
    "Conditioning",
    "Convention",
    "DataScale",
    "NetworkSection",
    "ObjectiveSection",
    "Output",
    "Rule",
    "Weights",
]


KEEP = "keep"
"""The null value of a condition that guidance does not drop."""

_CONDITION_SCHEMA = WithJsonSchema({"anyOf": [{"type": kind} for kind in ("string", "array", "object")]})


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkSection(_Section):
    """What builds the network."""

    factory: FactorySpec = Field(
        description="the callable that returns the network, as pkg.module:callable with the repository in the working "
        "directory or on PYTHONPATH, or as FILE.py:callable beside the card or in the working directory; its code is "
        "run",
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the factory")
    arguments_from: dict[str, str] = Field(
        default_factory=dict,
        description="keyword argument: dotted place in the checkpoint that holds its value, or the place divided by a "
        "number, as in args.resolution / 8; a value in the file replaces the one in `arguments`",
    )


class Rule(_Section):
    """How a tensor of the file becomes one of the network: its name, and the order of its axes.

    In `from`, `*` stands for any text without a dot. The first `*` in `to` is replaced by the text of the first one in
    `from`, and so on. After `reshape` and `axes`, adjacent axes are merged where the network's tensor has fewer.
    """

    from_: str = Field(alias="from", description="pattern of names in the file, after `strip`")
    to: str = Field(description="name in the network")
    reshape: tuple[int, ...] | None = Field(
        default=None, description="shape of the tensor before `axes`, in row-major order; one size may be -1"
    )
    axes: tuple[int, ...] | None = Field(
        default=None, description="order of the axes: [1, 0] is a transpose, [3, 2, 0, 1] turns HWIO into OIHW"
    )
    part: tuple[int, int] | None = Field(
        default=None,
        description="[k, n]: the tensor is part k, from 0, of the n along the first axis of the network's tensor, as "
        "query, key and value of a fused projection",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Rule:
        if self.to.count("*") > self.from_.count("*"):
            raise ValueError("`to` has more * than `from`")
        if self.part is not None and not 0 <= self.part[0] < self.part[1]:
            raise ValueError("part must be two whole numbers [k, n] with 0 <= k < n")
        if self.reshape is not None and (self.reshape.count(-1) > 1 or any(n < 1 and n != -1 for n in self.reshape)):
            raise ValueError("reshape must have sizes of at least 1, of which one may be -1")
        return self


class Weights(_Section):
    """Where the file stores the weights, and under which names."""

    raw: str = Field(
        default="",
        description="dotted place of the raw weights, which may end in a prefix of tensor names (model.net); empty for "
        "a bare state dict. Tensors named 0, 1, ... are the trained parameters in the network's order",
    )
    ema: str | None = Field(default=None, description="dotted place of their exponential moving average")
    strip: list[str] = Field(default_factory=list, description="prefixes to remove from tensor names")
    layout: Literal["torch", "flax"] = Field(
        default="torch",
        description="names and axes of the tensors. flax: the last word kernel, scale or embedding is read as weight, "
        "and kernels whose rule has no `axes` and no `reshape` get the axes of the torch layer: [in, out] of Linear, "
        "HWIO of convolutions, the heads of query, key, value and out",
    )
    rules: list[Rule] = Field(
        default_factory=list,
        description="how tensors of the file become tensors of the network; the first rule that fits a name applies, "
        "and every rule must fit one. Each tensor of the network is filled once",
    )
    absent: list[str] = Field(
        default_factory=list,
        description="patterns (shell wildcards) of tensors of the network that the file may lack; they keep the values "
        "that the factory gave them",
    )
    unused: list[str] = Field(
        default_factory=list, description="patterns of tensors in the file that the network does not have"
    )


def _null_is_a_name(values: Any) -> Any:
    """YAML reads the key `null` as None."""
    if not isinstance(values, dict):
        return values
    return {"null" if key is None else key: value for key, value in values.items()}


class ConditionInput(_Section):
    """One condition of the network: what it is made of, and its null value under guidance."""

    array: Any = Field(
        description="name of an array beside the samples of --data; a mapping of such names is passed as a dictionary, "
        "a list as a tuple",
    )
    encoder: str | None = Field(
        default=None,
        description="attribute of the network that is called with the arrays, a list as several arguments; what it "
        "returns is passed. Its parameters are measured with the others",
    )
    fold: bool = Field(
        default=False,
        description="whether the encoder takes the second axis of the arrays, such as steps of observation, as further "
        "samples; its outputs are joined to one row [n, steps * features] for each sample",
    )
    null: float | list[Any] | str | None = Field(
        default=None,
        description="value under the null condition of guidance: a number or list that broadcasts against one "
        "sample's row of the array, the attribute of the network that holds it, or `keep` for a condition that "
        "guidance does not drop",
    )

    _rename_null = model_validator(mode="before")(_null_is_a_name)

    @model_validator(mode="after")
    def _names_arrays(self) -> ConditionInput:
        if not all(isinstance(name, str) for name in leaves(self.array)):
            raise ValueError("array must be a name, or a mapping or list of names")
        if self.fold and self.encoder is None:
            raise ValueError("fold is about the axes that an encoder takes: add encoder, or remove fold")
        return self

    @property
    def names(self) -> list[str]:
        """Names of the arrays."""
        return leaves(self.array)


def _as_condition_input(value: Any) -> Any:
    """A name, list or mapping of names alone is the `array` of a condition."""
    return value if isinstance(value, dict) and "array" in value else {"array": value}


class Call(_Section):
    """How the network is called.

    Words stand for what is passed. `x` is the point x_t. `t` is the network's time at the point, `r` is its time at
    the other end of the interval, and `h` is the length of the interval, t - r >= 0 in mfdiag's times for either
    direction. `y` are the labels. `dropped` is a tensor [n] of booleans: which samples have the null condition.
    `omega`, `t_min` and `t_max` are guidance scale and guidance interval of each sample.
    `none` is None. Numbers, true, false and null are passed unchanged. `{value: flow}` is a constant string, and
    `{each: 1.0}` is a tensor [n] filled with one number. A list is passed as a tuple, as in [x, [t, h]], and any other
    mapping as a dictionary, as in {label: y}.

    `{cat: [t, r]}` is one tensor [n, 2] of both times, and `{cat: [x, r, t]}` is x with the times as further columns or
    channels: words with the same value at every place are repeated there.

    `conditions` names the arrays beside the samples of --data that the network takes: `{global_cond: obs}` passes the
    array `obs` as the keyword `global_cond`. `{condition: global_cond}` as a word passes it there instead.
    """

    arguments: list[Word] = Field(
        default=["x", "r", "t"], description="positional arguments: words, constants, lists, mappings"
    )
    keywords: dict[str, Word] = Field(default_factory=dict, description="keyword arguments: the same, by name")
    conditions: dict[str, Annotated[ConditionInput, BeforeValidator(_as_condition_input), _CONDITION_SCHEMA]] = Field(
        default_factory=dict,
        description="keyword argument: name of an array beside the samples, or a mapping with the fields below",
    )
    method: str = Field(default="forward", description="the method that is called")
    time_scale: float = Field(default=1.0, description="factor on every time that is passed, including h")
    time_shape: tuple[Literal["n", 1], ...] = Field(
        default=("n",),
        description="shape of each time that is passed, including h: [n], [n, 1], [n, 1, 1, 1], or [] for a network "
        "that takes one sample at a time with each time as one number",
    )
    layout: Literal["NCHW", "NHWC"] = Field(default="NCHW", description="order of the axes; C are the channels")


class Convention(_Section):
    """Direction and range of the network's times, and its path."""

    direction: Literal["D0", "D1"] = Field(
        default="D0",
        description="D0: data at time 0, noise at time 1. D1: data at time 1, noise at time 0; mfdiag reverses times "
        "and velocities",
    )
    path: PathSpec = Field(default="linear", description="as --path, with data at t = 0")
    noise_scale: float = Field(default=1.0, gt=0, description="standard deviation of the Gaussian noise x_1")
    time_clamp: tuple[float, float] | None = Field(
        default=None, description="range that the network's times r and t are clamped to, before time_scale"
    )


class Output(_Section):
    """What the network returns."""

    part: int | str | None = Field(
        default=None,
        description="index, key or attribute of the prediction in the returned value; null: the whole value",
    )
    channels: int | None = Field(
        default=None,
        ge=1,
        description="the prediction has this many channels, the first ones; the others, such as a learned variance, "
        "are not used",
    )
    prediction: PredictionSpec = Field(
        default="u",
        description="u is a velocity; other values as for --prediction. denoised:[floor=0] is EDM's denoiser "
        "D(x_t / alpha; sigma / alpha), whose times are noise levels",
    )
    average: bool = Field(
        default=True,
        description="true: an average over [r, t]. false: an instantaneous velocity that does not depend on r, as in "
        "flow matching; without --times, pairs then have r = t",
    )
    sign: Literal[1, -1] = Field(
        default=1,
        description="-1: the network predicts the negative of its prediction, as data minus noise with data at time 0",
    )
    velocity_head: int | str | None = Field(
        default=None,
        description="part of the returned value that is the instantaneous velocity of a velocity head, for estimators "
        "that use one",
    )


class Conditioning(_Section):
    """Labels of the network."""

    kind: Literal["none", "index", "one_hot"] = Field(default="none", description="how `y` is passed")
    classes: int = Field(default=0, ge=0, description="number of classes, without the null label")
    null: int | None = Field(
        default=None,
        description="index of the null label; with one_hot, an index beyond the last column gives a row of zeros",
    )
    offset: int = Field(
        default=0,
        description="added to each class number, modulo `classes`, before it is passed; not to the null label",
    )
    dropped: bool = Field(default=False, description="true: every sample gets the null label")

    _rename_null = model_validator(mode="before")(_null_is_a_name)

    @model_validator(mode="after")
    def _classes_fit_kind(self) -> Conditioning:
        if (self.kind == "none") != (self.classes == 0):
            raise ValueError("kind index or one_hot needs classes of at least 1; kind none has no classes")
        return self


class ObjectiveSection(_Section):
    """What the network was trained on. Each field is the default of the option of its name."""

    estimator: str | None = Field(default=None, description="as --estimator")
    proxy: str | None = Field(default=None, description="as --proxy")
    weighting: WeightingSpec | None = Field(default=None, description="as --weighting")
    times: TimesSpec | None = Field(default=None, description="as --times")
    derivative: str | None = Field(default=None, description="as --derivative")


class DataScale(_Section):
    """The scale of the data that the network takes. The data set itself is passed as --data."""

    shape: tuple[int, ...] | None = Field(default=None, description="shape of one sample, channels first")
    scale: float | None = Field(default=None, description="factor on the stored data")
    mean: float | list[float] | None = Field(
        default=None, description="subtracted from the stored data; one number, or one per channel"
    )
    std: float | list[float] | None = Field(
        default=None, description="divides the stored data after that; one number, or one per channel"
    )
    coupling: str = Field(default="independent", description="as --coupling")
    source: str = Field(default="gaussian", description="as --source")

    @property
    def statistics(self) -> dict[str, float | list[float]]:
        """Those of scale, mean and std that the card has."""
        statistics = {"scale": self.scale, "mean": self.mean, "std": self.std}
        return {name: value for name, value in statistics.items() if value is not None}


class Card(_Section):
    """A model card."""

    format: Literal[1] = 1
    extends: str | None = Field(
        default=None,
        description="a shipped card, or a file beside this one; its fields are the defaults of this card",
    )
    about: str = Field(default="", description="one line: which model, of which repository")
    source: str = Field(default="", description="URL and commit that the card was written from")
    network: NetworkSection
    weights: Weights = Weights()
    call: Call = Call()
    convention: Convention = Convention()
    output: Output = Output()
    conditioning: Conditioning = Conditioning()
    guidance: str | None = Field(default=None, description="as --guidance")
    objective: ObjectiveSection = ObjectiveSection()
    data: DataScale = DataScale()
    recognise: Recognise | None = Field(
        default=None, description="in shipped cards: how `mfdiag inspect` recognizes files of this repository"
    )

    _file: Path = PrivateAttr(default=Path("card"))

    def in_file(self, file: Path) -> Card:
        """A copy of the card that knows which file it was read from."""
        card = self.model_copy()
        card._file = file
        return card

    @property
    def file(self) -> Path:
        """The file the card was read from."""
        return self._file

    @property
    def name(self) -> str:
        """File name of the card, for notes and errors."""
        return self._file.name

    @property
    def factory(self) -> str:
        """The factory of the network; FILE.py is the file beside the card if that exists."""
        place, _, attribute = self.network.factory.rpartition(":")
        beside = self._file.parent / place
        return f"{beside}:{attribute}" if place.endswith(".py") and is_file(beside) else self.network.factory

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        if self.call.time_shape and self.call.time_shape != ("n", *[1] * (len(self.call.time_shape) - 1)):
            raise ValueError("time_shape must be [], or n followed by ones, as in [n, 1, 1, 1]")
        words = self.words
        if not {"x", "t"} <= words:
            raise ValueError("call must pass x and t")
        if self.output.average and not words & {"r", "h"}:
            raise ValueError("an average needs r or h, but call passes neither: add one, or set output.average: false")
        unknown = self.conditions_by_place - self.call.conditions.keys()
        if unknown:
            raise ValueError(f"call passes the condition {min(unknown)!r}, which call.conditions does not have")
        if twice := (self.call.conditions.keys() - self.conditions_by_place) & self.call.keywords.keys():
            raise ValueError(f"call.keywords and call.conditions both pass {min(twice)!r}: remove one")
        if ("y" in words) != (self.conditioning.kind != "none"):
            raise ValueError("call must pass y exactly if conditioning.kind is index or one_hot")
        if self.predicts_denoised and self.convention.direction == "D1":
            raise ValueError("prediction denoised takes noise levels as times, which have no direction D1: set D0")
        low, high = self.convention.time_clamp or (0.0, 1.0)
        if not 0 <= low < high <= 1:
            raise ValueError(f"time_clamp must be two times 0 <= low < high <= 1, but got {low:g}, {high:g}")
        if self.predicts_denoised and high == 1:
            raise ValueError("prediction denoised has an infinite noise level at t = 1: set a time_clamp below 1")
        return self

    @property
    def words(self) -> set[Any]:
        """All words and constants that the call passes."""
        return set(leaves([*self.call.arguments, *self.call.keywords.values()]))

    @property
    def conditions_by_place(self) -> set[str]:
        """The conditions that words of the call pass; the others are keyword arguments."""
        return conditions_in([*self.call.arguments, *self.call.keywords.values()])

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The arrays beside the samples that the network takes, each once."""
        return tuple(dict.fromkeys(name for entry in self.call.conditions.values() for name in entry.names))

    @property
    def predicts_denoised(self) -> bool:
        """Whether the network is a denoiser whose times are noise levels."""
        return self.output.prediction.partition(":")[0] == DENOISED

    @property
    def axes(self) -> dict[str, str]:
        """Option -> value, for the options of path, pairs and prediction that default to the card."""
        source, noise = self.data.source, self.convention.noise_scale
        return {
            "source": f"gaussian:{noise!r}" if source == "gaussian" and noise != 1 else source,
            "coupling": self.data.coupling,
            "path": self.convention.path,
            "prediction": self.prediction,
        }

    @property
    def prediction(self) -> str:
        """What the adapted network predicts, as --prediction: a denoiser predicts x, with its own floor or none."""
        _, _, floor = self.output.prediction.partition(":")
        return f"x:{floor or 0}" if self.predicts_denoised else self.output.prediction
