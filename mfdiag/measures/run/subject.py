"""What is measured: a network, its proxy and the distribution of its samples, from a checkpoint and options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path as FilePath
from typing import Any

from torch import nn

from mfdiag.errors import InputError, did_you_mean
from mfdiag.fields.builder import Proxy
from mfdiag.flow.couplings import INDEPENDENT, REVERSED, Coupling, parse_coupling
from mfdiag.flow.data.datasets import Data, load_data
from mfdiag.flow.data.scale_check import check_scale, shape_hint, whole_numbers_note
from mfdiag.flow.data.user_data import is_user_data
from mfdiag.flow.draw import Draws
from mfdiag.flow.guidance import Guidance, parse_guidance
from mfdiag.flow.paths import LINEAR, Path, end_note, parse_path
from mfdiag.flow.sources import Source, parse_source
from mfdiag.flow.time_shares import share_note
from mfdiag.flow.times import TimeSampler, parse_times, same_times_note
from mfdiag.measures.run.array_checks import require_arrays, require_fitting_arrays, require_no_dropped_array
from mfdiag.measures.run.request import Progress
from mfdiag.models.call_adapter import call_note, unlabeled_note
from mfdiag.models.cards.card import Card
from mfdiag.models.checkpoint import LoadedModel, bundled, load_model
from mfdiag.models.prediction import as_average_velocity, prediction_name
from mfdiag.models.teacher import load_teacher, teacher_velocity
from mfdiag.models.wrapper import conditions_taken, conditions_without_null
from mfdiag.storage import run_folder
from mfdiag.usercode import is_user_code

__all__ = ["Subject", "SubjectOptions", "data_of", "load_subject", "subject_of", "velocity_of"]

_BUNDLED = "bundled:eight_gaussians"  # name of the bundled checkpoint in tables: its path is the installation's
_DEFAULTS = {"source": "gaussian", "coupling": "independent", "path": "linear", "prediction": "u"}
_EQUAL_TIMES = "restricted:0"
_DEFAULT_TIMES = "logit_normal"  # MeanFlow's own


@dataclass(frozen=True)
class Subject:
    """What is measured: a network, its guidance, and the distribution it was trained on.

    Attributes:
        module: The network, giving the average velocity u(x, r, t, labels).
        data: The distribution of x_0.
        times: The sampler of (r, t).
        proxy: Where vhat comes from.
        proxy_module: The network whose u(x_t, t, t) is vhat, for the proxies "ema" and "teacher".
        proxy_name: The proxy as the tables call it.
        run: Name of the run the checkpoint comes from.
        checkpoint: Name or path of the checkpoint.
        sha256: Hash of its file.
        step: Optimizer steps taken when it was saved.
        conditional: Whether the network takes labels.
        source: The distribution of x_1; None is N(0, I).
        coupling: Which x_0 is paired with which x_1.
        path: The path from x_0 to x_1.
        prediction: What the network predicts, before it is converted to u.
        networks: "ema" and "teacher", if the run has them.
        guidance: Guidance that is built into the objective.

    Raises:
        InputError: The guidance needs labels, a velocity head or a teacher that are missing, or the proxy is a teacher
            although noise is at t = 0.
    """

    module: nn.Module
    data: Data
    times: TimeSampler
    proxy: Proxy = "self"
    proxy_module: nn.Module | None = None
    proxy_name: str = "self"
    run: str = "model"
    checkpoint: str = "model"
    sha256: str | None = None
    step: int | None = None
    conditional: bool = False
    source: Source | None = None
    coupling: Coupling = INDEPENDENT
    path: Path = LINEAR
    prediction: str = "u"
    networks: Mapping[str, nn.Module] = field(default_factory=dict)
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        if self.guidance is not None:
            self._require_guidable(self.guidance)
        if self.proxy == "teacher" and self.coupling is REVERSED:
            raise InputError(
                "Expected --proxy self or ema, because --coupling reversed has noise at t = 0, but a teacher's "
                "velocity has data there. Pass one of these."
            )

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays beside the samples that one of the networks takes, each once."""
        networks = (self.module, self.proxy_module, *self.networks.values())
        return tuple(dict.fromkeys(name for network in networks for name in conditions_taken(network)))

    def draws(self, seed: int, *, exact_posterior: bool = True) -> Draws:
        """The samples of a seed; with `exact_posterior`, their exact posterior where it is known."""
        return Draws(
            self.data,
            self.times,
            seed,
            conditional=self.conditional,
            exact_posterior=exact_posterior,
            source=self.source,
            coupling=self.coupling,
            path=self.path,
            guidance=self.guidance,
            null_label=getattr(self.module, "num_classes", 0) or 0,
            conditions=self.conditions,
        )

    def _require_guidable(self, guidance: Guidance) -> None:
        guiding = self.networks.get(guidance.network, self.module)
        for network in (self.module, guiding):
            if without_null := conditions_without_null(network):
                raise InputError(
                    f"--guidance {guidance.name} drops conditions, but no null value of {without_null[0]!r} is known. "
                    f"Pass a card with `call: {{conditions: {{NAME: {{array: {without_null[0]}, null: 0}}}}}}`, or "
                    "`null: keep` for one that is never dropped; or pass --guidance none."
                )
        if not self.conditions and (not self.conditional or not self.data.num_classes):
            who = f"{self.data.name} has none" if self.conditional else "the network takes none (its num_classes is 0)"
            raise InputError(f"--guidance {guidance.name} needs labels, but {who}. Pass --guidance none.")
        if guidance.network == "head" and not hasattr(self.module, "velocity"):
            raise InputError(
                f"--guidance {guidance.name} needs a velocity head, a method velocity(x, r, t, labels), but the "
                "network has none. Pass another guidance."
            )
        if guidance.network == "teacher" and "teacher" not in self.networks:
            raise InputError(f"--guidance {guidance.name} needs a teacher: pass --proxy teacher=PATH.")

    @property
    def record(self) -> dict[str, Any]:
        """What the manifest says of it besides its identity: the axes, and the arrays beside the samples it takes."""
        return {**self.axes, **({"conditions": list(self.conditions)} if self.conditions else {})}

    @property
    def axes(self) -> dict[str, str]:
        """Source, coupling, path, prediction and guidance by name."""
        source = "gaussian" if self.source is None else self.source.name
        return {
            "source": source,
            "coupling": self.coupling.name,
            "path": self.path.name,
            "prediction": self.prediction,
            "guidance": "none" if self.guidance is None else self.guidance.name,
        }


@dataclass(frozen=True)
class SubjectOptions:
    """How a checkpoint is read: specifications as on the command line, None where the checkpoint decides.

    Attributes:
        model: A model card, or code that builds the network.
        data: The data it was trained on.
        weights: Which weights are measured.
        proxy: Where vhat comes from.
        times: Sampler of (r, t).
        source: What x_1 is.
        coupling: Which x_0 is paired with which x_1.
        path: The path from x_0 to x_1.
        prediction: What the network's output stands for.
        guidance: Guidance built into the objective.
    """

    model: str | None = None
    data: str | None = None
    weights: str = "raw"
    proxy: str | None = None
    times: str | None = None
    source: str | None = None
    coupling: str | None = None
    path: str | None = None
    prediction: str | None = None
    guidance: str | None = None

    @classmethod
    def of(cls, options: object) -> SubjectOptions:
        """From an object with attributes of these names, such as the command line's options."""
        return cls(**{entry.name: getattr(options, entry.name) for entry in fields(cls)})


def load_subject(
    checkpoint: FilePath,
    options: SubjectOptions = SubjectOptions(),
    *,
    say: Callable[[str], None],
    progress: Progress | None = None,
) -> Subject:
    """Load a checkpoint with the data, sampler and proxy it is measured with.

    Args:
        checkpoint: File or folder of weights.
        options: What the user states; the rest comes from the checkpoint or the model card.
        say: Receives notes about what was assumed.
        progress: Receives (label, items read, items in all) for data by code.

    Returns:
        The subject.

    Raises:
        InputError: A file cannot be read, or something that is needed comes from neither the checkpoint nor an option.
    """
    loaded = load_model(checkpoint, model=options.model, weights=options.weights)
    return subject_of(loaded, checkpoint, options, say=say, progress=progress)


def subject_of(
    loaded: LoadedModel,
    checkpoint: FilePath,
    options: SubjectOptions = SubjectOptions(),
    data: Data | None = None,
    *,
    say: Callable[[str], None],
    progress: Progress | None = None,
) -> Subject:
    """A loaded checkpoint with the data, sampler and proxy it is measured with.

    Args:
        loaded: The loaded checkpoint.
        checkpoint: Its file or folder.
        options: What the user states; the rest comes from the checkpoint or the model card.
        data: The data it was trained on; None for those of the options or the checkpoint.
        say: Receives notes about what was assumed.
        progress: Receives (label, items read, items in all) for data by code.

    Returns:
        The subject.

    Raises:
        InputError: Something that is needed comes from neither the checkpoint nor an option, or parts do not fit.
    """
    card = loaded.card
    for note in (*loaded.notes, *_notes_of_code(card)):
        say(note)
    times = _times(checkpoint, options, loaded, say)
    axes = _axes(checkpoint, options, loaded)
    if data is None:
        data = data_of(checkpoint, options, loaded, progress)
    _report_whole_numbers(data, card, say)
    loaded = _adapted(loaded, data, say)
    if card is not None:
        _require_fitting(card, data, say)
    path, source = _path_of(axes["path"], say), parse_source(axes["source"], data)
    kind, proxy_name, networks = _proxy(options, loaded, axes, path, data, say)
    classes = _classes(checkpoint, loaded, data)
    require_fitting_arrays((loaded.module, *networks.values()), data)
    run, name = _run_and_name(checkpoint)
    return Subject(
        as_average_velocity(loaded.module, axes["prediction"], path),
        data,
        times,
        kind,  # type: ignore[arg-type]
        networks.get(kind),
        proxy_name,
        run=run,
        checkpoint=name,
        sha256=loaded.sha256,
        step=loaded.step,
        conditional=bool(classes),
        source=source,
        coupling=parse_coupling(axes["coupling"], data, source, lambda f: teacher_velocity(f, options.model, data)),
        path=path,
        prediction=prediction_name(axes["prediction"]),
        networks=networks,
        guidance=parse_guidance(options.guidance or "none"),
    )


def _path_of(spec: str, say: Callable[[str], None]) -> Path:
    """The path, with a note where its ends are not pure data and pure noise."""
    path = parse_path(spec)
    if (note := end_note(path)) is not None:
        say(note)
    return path


def _notes_of_code(card: Card | None) -> list[str]:
    """What must be said of the code that a card runs."""
    return [] if card is None else [f"{card.name} builds the network with {card.factory}, whose code is run."]


def _classes(checkpoint: FilePath, loaded: LoadedModel, data: Data) -> int:
    """Classes of the network, 0 for none. Raises InputError if the data have more."""
    classes: int = getattr(loaded.module, "num_classes", 0)
    if classes and data.num_classes > classes:
        raise InputError(
            f"{checkpoint} holds a network for {classes} classes, but {data.name} has labels of {data.num_classes} "
            "classes. Pass the --data it was trained on."
        )
    return classes


def _run_and_name(checkpoint: FilePath) -> tuple[str, str]:
    """The run's and the checkpoint's name in tables."""
    if checkpoint == bundled():
        return "bundled", _BUNDLED
    return run_folder(checkpoint).name or checkpoint.stem, str(checkpoint)


def _data_spec(checkpoint: FilePath, options: SubjectOptions, loaded: LoadedModel) -> str:
    """The specification of the data: the user's, or the checkpoint's."""
    if options.data is not None:
        return options.data
    if loaded.description is None:
        raise InputError(f"{checkpoint} does not say what data it was trained on: pass --data NAME or PATH.")
    if is_user_data(loaded.description.data):
        raise InputError(
            f"{checkpoint} was trained on {loaded.description.data}, which is code: pass --data "
            f"{loaded.description.data} to run it."
        )
    return loaded.description.data


def velocity_of(loaded: LoadedModel, data: Data) -> nn.Module:
    """The average velocity u(x, r, t, condition) of a loaded checkpoint, called as the data show to be right."""
    axes = _axes(loaded.path, SubjectOptions(), loaded)
    module = loaded.adapted(data).module
    require_no_dropped_array((module,), data)
    return as_average_velocity(module, axes["prediction"], parse_path(axes["path"]))


def data_of(
    checkpoint: FilePath, options: SubjectOptions, loaded: LoadedModel, progress: Progress | None = None
) -> Data:
    """The data of the options or the checkpoint, on the card's scale and with the conditions that the network takes.

    Args:
        checkpoint: Its file or folder, for errors.
        options: What the user states.
        loaded: The loaded checkpoint.
        progress: Receives (label, items read, items in all) for data by code.

    Returns:
        The data.

    Raises:
        InputError: Neither says what the data are, or they cannot be loaded.
    """
    spec = _data_spec(checkpoint, options, loaded)
    statistics: Mapping[str, Any] = {} if loaded.card is None else loaded.card.data.statistics

    def advance(done: int, total: int) -> None:
        if progress is not None:
            progress(f"reading {spec}", done, max(done, total))

    return load_data(spec, conditions=loaded.possible_conditions, advance=advance, **statistics)


def _adapted(loaded: LoadedModel, data: Data, say: Callable[[str], None]) -> LoadedModel:
    """The model called as its own signature and the data say, which it reports."""
    loaded = loaded.adapted(data)
    own = loaded.module if loaded.built_by_code else None
    notes = [] if own is None else [call_note(own)]
    if loaded.card is None:  # a card's own note says what stands for no label
        notes.append(unlabeled_note(loaded.module, data))
    for note in filter(None, notes):
        say(note)
    return loaded


def _times(
    checkpoint: FilePath, options: SubjectOptions, loaded: LoadedModel, say: Callable[[str], None]
) -> TimeSampler:
    """The sampler of (r, t), with what must be said of it."""
    spec = _times_spec(checkpoint, options, loaded, say)
    times = parse_times(spec)
    for note in filter(None, (share_note(spec), same_times_note(times))):
        say(note)
    return times


def _times_spec(checkpoint: FilePath, options: SubjectOptions, loaded: LoadedModel, say: Callable[[str], None]) -> str:
    """The sampler's specification: the user's, the checkpoint's, or the method's own, with a note."""
    if options.times is not None:
        return options.times
    if loaded.description is not None:
        return loaded.description.times
    spec, whose = _DEFAULT_TIMES, "MeanFlow's default"
    if loaded.card is not None and not loaded.card.output.average:
        spec, whose = _EQUAL_TIMES, "r = t, since the network has no r"
    say(f"{checkpoint} does not say how (r, t) were drawn: using {whose}, --times {parse_times(spec).name}.")
    return spec


def _axes(checkpoint: FilePath, options: SubjectOptions, loaded: LoadedModel) -> dict[str, str]:
    """Specifications of source, coupling, path and prediction."""
    stated = {name: getattr(options, name) for name in _DEFAULTS}
    if loaded.card is not None:  # the user passed the card, so its code may run; a checkpoint's may not
        return {name: stated[name] or value for name, value in loaded.card.axes.items()}
    described = {name: getattr(loaded.description, name, default) for name, default in _DEFAULTS.items()}
    return {name: stated[name] or _without_code(checkpoint, name, value) for name, value in described.items()}


def _proxy(
    options: SubjectOptions,
    loaded: LoadedModel,
    axes: Mapping[str, str],
    path: Path,
    data: Data,
    say: Callable[[str], None],
) -> tuple[str, str, dict[str, nn.Module]]:
    """The proxy's kind, its name in the tables, and the networks "ema" and "teacher" if there are any."""
    proxy, prediction = options.proxy, axes["prediction"]
    if proxy is None:
        proxy = "ema" if loaded.has_weights("ema") else "self"
    kind, _, teacher = proxy.partition("=")
    networks: dict[str, nn.Module] = {}
    if kind == "teacher":
        if not teacher:
            raise InputError("--proxy teacher needs the teacher's checkpoint: pass --proxy teacher=PATH.")
        networks["teacher"] = load_teacher(teacher, options.model, prediction, path, data, say)
    elif kind == "ema":
        networks["ema"] = as_average_velocity(loaded.with_weights("ema"), prediction, path)
    elif kind not in ("self", "exact") or teacher:
        raise did_you_mean("proxy", proxy, ("self", "ema", "exact", "teacher=PATH"))
    if kind != "ema" and options.weights == "raw" and loaded.has_weights("ema"):
        networks["ema"] = as_average_velocity(loaded.with_weights("ema"), prediction, path)
    return kind, proxy, networks


def _report_whole_numbers(data: Data, card: Card | None, say: Callable[[str], None]) -> None:
    """Says that data look like unscaled images. Raises InputError if the card states another scale."""
    note = whole_numbers_note(data)
    if note is None:
        return
    statistics = {} if card is None else card.data.statistics
    if card is not None and statistics not in ({}, {"scale": 1.0}):
        stated = ", ".join(f"{name}: {value}" for name, value in statistics.items())
        raise InputError(
            f"Expected data on the scale that {card.name} states ({stated}), but --data replaces it and {data.name} "
            "has whole numbers up to 255; remove scale, mean, std and statistics from --data, or correct the card."
        )
    say(note)


def _require_fitting(card: Card, data: Data, say: Callable[[str], None]) -> None:
    """Raises InputError for data that the card's network cannot take; says what looks wrong about their scale."""
    require_arrays(card.condition_names, data, card.name)
    shape, conditioning = card.data.shape, card.conditioning
    if shape is not None and data.shape != shape:
        raise InputError(
            f"{card.name} says that samples have the shape {list(shape)}, but {data.name} has {list(data.shape)}; "
            f"{shape_hint(data.shape, shape) or 'pass --data of that shape, or correct data.shape'}."
        )
    if conditioning.kind != "none" and not data.num_classes:
        if conditioning.null is None:
            raise InputError(
                f"{card.name} passes labels and gives no null label, but {data.name} has no labels; pass --data with "
                "labels, or give conditioning.null."
            )
        say(f"{data.name} has no labels: the network receives its null label.")
    standard = card.data.scale if card.data.std is not None else None  # without std, the card's scale normalizes
    check_scale(data, say, std=abs(standard or 1))


def _without_code(checkpoint: FilePath, axis: str, value: str) -> str:
    """The checkpoint's value of an axis. Raises InputError for code, which runs only if the user passes it too."""
    if is_user_code(value):
        raise InputError(
            f"{checkpoint} was trained with the {axis} {value}, which is code: pass --{axis} {value} to run it."
        )
    return value
