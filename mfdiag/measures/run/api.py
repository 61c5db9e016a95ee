"""`mfdiag.measure`: the tables of a model in memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from reprlib import repr
from typing import Any, Literal, TypedDict, Unpack, get_args, get_type_hints

import numpy as np
import pandas as pd
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn

from mfdiag.errors import InputError, did_you_mean, plain_validation
from mfdiag.fields.builder import Proxy
from mfdiag.flow.couplings import parse_coupling
from mfdiag.flow.data.datasets import Data, as_data, with_conditions
from mfdiag.flow.data.scale_check import whole_numbers_note
from mfdiag.flow.guidance import parse_guidance
from mfdiag.flow.paths import parse_path
from mfdiag.flow.sources import parse_source
from mfdiag.flow.time_shares import share_note
from mfdiag.flow.times import parse_times, same_times_note
from mfdiag.flow.weighting import parse_weighting
from mfdiag.gradients.sample_pass import PassSettings
from mfdiag.measures import find_table
from mfdiag.measures.run.array_checks import require_arrays, require_fitting_arrays
from mfdiag.measures.run.choice import card_objective, require_known_extras
from mfdiag.measures.run.convention_check import check_convention
from mfdiag.measures.run.measure_subject import measure_subject
from mfdiag.measures.run.request import Progress, Request
from mfdiag.measures.run.subject import Subject, SubjectOptions, data_of, subject_of
from mfdiag.measures.run.table import MeasuredTable
from mfdiag.models.call_adapter import adapt_to, arrays_possible, call_note, unlabeled_note
from mfdiag.models.cards.card import Card
from mfdiag.models.checkpoint import LoadedModel
from mfdiag.models.factory import freeze_as_buffers, has_frozen_parameters
from mfdiag.models.open_calls import calls_closed
from mfdiag.models.precision import copy_network, require_device
from mfdiag.models.prediction import as_average_velocity, prediction_name
from mfdiag.models.teacher import teacher_velocity
from mfdiag.models.wrapper import conditions_taken, unwrapped

__all__ = ["MeasureOptions", "Objective", "measure", "prepare_subject"]

_TABLES = ("sweep", "variance", "coefficient")


@dataclass(frozen=True)
class Objective:
    """What a model was trained on, as specifications of the command line.

    Attributes:
        times: Sampler of (r, t), `mfdiag list times`.
        source: What x_1 is, `mfdiag list sources`.
        coupling: Which x_0 is paired with which x_1, `mfdiag list couplings`.
        path: The path from x_0 to x_1, `mfdiag list paths`.
        prediction: What the network predicts, `mfdiag list predictions`.
        guidance: Guidance built into the objective, `mfdiag list guidances`.
        weighting: Weight of each sample in the loss.
        proxy: Where the proxy velocity vhat comes from.
        proxy_model: The network whose u(x_t, t, t) is vhat, for the proxies "ema" and "teacher".
    """

    times: str = "logit_normal"
    source: str = "gaussian"
    coupling: str = "independent"
    path: str = "linear"
    prediction: str = "u"
    guidance: str = "none"
    weighting: str = "none"
    proxy: Proxy = "self"
    proxy_model: nn.Module | None = None


class MeasureOptions(TypedDict, total=False):
    """Keywords of `measure` that set one field of a group each."""

    times: str
    source: str
    coupling: str
    path: str
    prediction: str
    guidance: str
    weighting: str
    proxy: Proxy
    proxy_model: nn.Module | None
    estimators: Sequence[str] | None
    beta: Sequence[float]
    gamma: Sequence[float]
    batch_sizes: Sequence[int]
    by_layer: bool
    seed: int
    posterior: Literal["auto", "exact", "none"]
    extras: Sequence[str]
    floor: float
    samples: int
    bins: tuple[int, int] | None
    chunk: int | None
    engine: Literal["auto", "fast", "reference"]
    dtype: torch.dtype | None
    device: str
    derivative: str


_OBJECTIVE = frozenset(Objective.__dataclass_fields__)
_SETTINGS = frozenset(PassSettings.__dataclass_fields__)
_REQUEST = {"beta": "betas", "gamma": "gammas"}  # keyword -> field, where they differ


@calls_closed()
def measure(
    model: nn.Module | LoadedModel,
    data: Any = None,
    *,
    conditions: Mapping[str, np.ndarray | Tensor] = {},
    tables: str | Sequence[str] = _TABLES,
    objective: Objective | None = None,
    request: Request | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    **options: Unpack[MeasureOptions],
) -> dict[str, pd.DataFrame]:
    """Measure a model in memory: the same numbers as the commands of the same names.

    Args:
        model: A module with forward(x [n, *shape], r [n], t [n], labels [n] or None) -> u [n, *shape], data at t = 0.
            A copy is measured in eval mode, without its frozen parameters. Arguments with other names or in another
            order are passed by name. With `num_classes` > 0, it gets labels. Or what `mfdiag.load_model` returns.
        data: Data the model was trained on; may be left out if a loaded checkpoint describes them. A specification
            ("eight_gaussians", "gaussian:2,0,1", a file, `FILE.py:factory`), a `Data`, an array or tensor [N, *shape],
            or a torch Dataset whose items are samples, (sample, label), or dictionaries with conditions by name.
        conditions: Arrays [N, ...] beside the samples by name, such as observations, text or a mask: one row for each
            of N stored samples. The model receives them in the parameters of their names.
        tables: Names of the tables to measure, or one name; table `times` needs `bins`.
        objective: What the model was trained on; for a loaded checkpoint, its description and card say it by default.
        request: Estimators, coefficients, batch sizes and, in its `settings`, how a pass runs. Without it each table's
            default estimators are measured.
        progress: Receives (label, samples done, samples in all).
        say: Receives one-line notes, as where the samples neither confirm nor refute the convention.
        **options: Single fields of these groups by keyword, which override the groups: `times`, `source`, `coupling`,
            `path`, `prediction`, `guidance`, `weighting`, `proxy`, `proxy_model`; `estimators`, `beta`, `gamma`,
            `batch_sizes`, `by_layer`, `seed`, `posterior`, `extras`, `floor`; `samples`, `bins`, `chunk`, `engine`,
            `dtype`, `device`, `derivative`.

    Returns:
        Tidy tables by name.

    Warns:
        UserWarning: Another convention explains the model better than the declared one, beyond doubt.

    Raises:
        InputError: The request is impossible, or the model returns NaN or mixes its samples.
        TypeError: A keyword is unknown.
    """
    complete, base, estimators = _grouped(options, objective or Objective(), request)
    card = model.card if isinstance(model, LoadedModel) and objective is None else None
    if isinstance(model, LoadedModel):
        stated = _OBJECTIVE if objective is not None else _OBJECTIVE & options.keys()
        subject = _loaded_subject(model, data, conditions, complete, stated, say)
    else:
        subject = _subject(model, _with_conditions(_required(data, model), conditions), complete, say)
    _check(subject, base, say)
    frames: dict[str, pd.DataFrame] = {}
    for name in [tables] if isinstance(tables, str) else tables:
        table = find_table(name)
        table_request = replace(base, estimators=estimators or table.default_estimators)
        if card is not None:
            table_request = _as_trained(table_request, card, table, {*options, *(["estimators"] if estimators else [])})
        frames |= measure_subject(subject, table, table_request, progress=progress, say=say)
    return frames


def prepare_subject(
    model: nn.Module,
    data: Any,
    *,
    objective: Objective | None = None,
    say: Callable[[str], None] | None = None,
    **options: Unpack[MeasureOptions],
) -> tuple[Subject, Request]:
    """What `measure` measures of a module, and how it is asked, without measuring it.

    Args:
        model: As for `measure`.
        data: As for `measure`.
        objective: As for `measure`.
        say: Receives one-line notes.
        **options: As for `measure`.

    Returns:
        The subject and the request.

    Raises:
        InputError: The model cannot be called, or does not fit its data.
        TypeError: A keyword is unknown.
    """
    complete, request, _ = _grouped(options, objective or Objective(), None)
    return _subject(model, _required(data, model), complete, say), request


def _grouped(
    options: Mapping[str, Any], objective: Objective, request: Request | None
) -> tuple[Objective, Request, Sequence[str] | None]:
    """The objective and the request with single fields by keyword, and the estimators if any are requested."""
    if unknown := options.keys() - MeasureOptions.__annotations__.keys():
        raise TypeError(f"measure() got an unexpected keyword argument {min(unknown)!r}")
    keywords = _checked(options)
    objective = replace(objective, **{name: keywords.pop(name) for name in _OBJECTIVE & keywords.keys()})
    settings = {name: keywords.pop(name) for name in _SETTINGS & keywords.keys()}
    settings |= {"dtype": torch.float32} if settings.get("dtype", torch.float32) is None else {}
    estimators = keywords.pop("estimators", None) or (None if request is None else request.estimators)
    base = request or Request()
    base = replace(
        base,
        **{_REQUEST.get(name, name): value for name, value in keywords.items()},
        weighting=base.weighting if objective.weighting == "none" else parse_weighting(objective.weighting),
        settings=replace(base.settings, **settings),
    )
    require_known_extras(base.extras)
    require_device(base.settings.device)
    return objective, base, estimators


def _checked(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords, arrays among them as lists. InputError for a value of another type than `MeasureOptions` says."""
    checked = {}
    for name, value in keywords.items():
        plain = value.tolist() if isinstance(value, np.ndarray | np.generic | Tensor) else value
        try:
            checked[name] = _types()[name].validate_python(plain, strict=isinstance(plain, str))  # "3" is no number
        except ValidationError as error:
            reason = plain_validation(error.errors()[0]["msg"])
            raise InputError(f"{name}={repr(value)} cannot be used. {reason}.") from None
    return checked


@cache
def _types() -> dict[str, TypeAdapter[Any]]:
    config = ConfigDict(arbitrary_types_allowed=True)
    return {name: TypeAdapter(kind, config=config) for name, kind in get_type_hints(MeasureOptions).items()}


def _check(subject: Subject, request: Request, say: Callable[[str], None] | None) -> None:
    """Warns the caller of `measure` where another convention explains the model better than the declared one."""
    passes = request.settings
    doubt = check_convention(
        subject, passes.samples, seed=request.seed, dtype=passes.dtype, device=passes.device, say=say
    )
    if doubt is not None:
        warnings.warn(doubt.text, stacklevel=5)  # `mfdiag.measure` and `calls_closed` add frames


def _required(data: Any, model: nn.Module) -> Data:
    """The data of a model in memory, which does not say what it was trained on."""
    if not isinstance(model, nn.Module):
        raise InputError(
            f"Expected a torch.nn.Module, or what mfdiag.load_model returns, but got a {type(model).__name__}. Put a "
            "function into the forward of a module that holds its parameters."
        )
    if data is None:
        raise InputError("Expected the data that the model was trained on as second argument, but got none.")
    return as_data(data, arrays_possible(model))


def _with_conditions(data: Data, conditions: Mapping[str, Any]) -> Data:
    return with_conditions(data, conditions) if conditions else data


def _as_trained(request: Request, card: Card, table: MeasuredTable, stated: Collection[str]) -> Request:
    """The request with the estimator, weighting and derivative of a card where no keyword states them."""
    of_card = card_objective(card, table)
    changed: dict[str, Any] = {}
    if "estimator" in of_card and "estimators" not in stated:
        changed["estimators"] = of_card["estimator"]
    if "weighting" in of_card and "weighting" not in stated:
        changed["weighting"] = parse_weighting(of_card["weighting"])
    if "derivative" in of_card and "derivative" not in stated:
        changed["settings"] = replace(request.settings, derivative=of_card["derivative"])
    return replace(request, **changed)


def _loaded_subject(
    loaded: LoadedModel,
    data: Any,
    conditions: Mapping[str, Any],
    objective: Objective,
    stated: Collection[str],
    say: Callable[[str], None] | None,
) -> Subject:
    """A loaded checkpoint with the `stated` fields of the objective; its description and card say the others."""
    of_card = {} if loaded.card is None else {"guidance": loaded.card.guidance, **loaded.card.objective.model_dump()}
    axes = ("proxy", "times", "source", "coupling", "path", "prediction", "guidance")
    values = {name: getattr(objective, name) if name in stated else of_card.get(name) for name in axes}
    proxy_model = objective.proxy_model
    if proxy_model is not None:
        values["proxy"] = "self"
    spec = data if isinstance(data, str) else None
    options = SubjectOptions(data=spec, weights=loaded.weights, **values)
    in_memory = None if data is None or isinstance(data, str) else as_data(data)
    if conditions:
        in_memory = with_conditions(
            data_of(loaded.path, options, loaded) if in_memory is None else in_memory, conditions
        )
    subject = subject_of(loaded, loaded.path, options, in_memory, say=say or _mute)
    if proxy_model is None:
        return subject
    kind, adapted = objective.proxy, adapt_to(proxy_model, subject.data)
    network = as_average_velocity(adapted, subject.prediction, subject.path)
    return replace(
        subject, proxy=kind, proxy_name=kind, proxy_module=network, networks={**subject.networks, kind: network}
    )


def _mute(note: str) -> None:
    """Drops a note."""


def _subject(model: nn.Module, data: Data, objective: Objective, say: Callable[[str], None] | None) -> Subject:
    """The model with the data, the samplers and the proxy of its objective."""
    times = parse_times(objective.times)
    if (note := share_note(objective.times)) is not None:  # the number changed between versions: never without a word
        say(note) if say is not None else warnings.warn(note, FutureWarning, stacklevel=5)
    if say is not None:
        for note in filter(None, (whole_numbers_note(data), same_times_note(times))):
            say(note)
    proxy, proxy_model = objective.proxy, objective.proxy_model
    if proxy not in get_args(Proxy):
        raise did_you_mean("proxy", proxy, get_args(Proxy))
    if proxy in ("ema", "teacher") and proxy_model is None:
        raise InputError(f"proxy={proxy!r} needs proxy_model, the network whose u(x_t, t, t) is the proxy velocity.")
    if has_frozen_parameters(model):  # as in a network that the command line builds
        model = copy_network(model)
        freeze_as_buffers(model)
    path, source = parse_path(objective.path), parse_source(objective.source, data)
    model = adapt_to(model, data)
    if proxy_model is not None:
        proxy_model = adapt_to(proxy_model, data)
    require_arrays(conditions_taken(model), data, type(unwrapped(model)).__name__)
    require_fitting_arrays([network for network in (model, proxy_model) if network is not None], data)
    if say is not None:
        for note in filter(None, (call_note(model), unlabeled_note(model, data))):
            say(note)
    proxy_network = None if proxy_model is None else as_average_velocity(proxy_model, objective.prediction, path)
    return Subject(
        as_average_velocity(model, objective.prediction, path),
        data,
        times,
        proxy,
        proxy_network,
        proxy,
        conditional=bool(getattr(model, "num_classes", 0)),
        source=source,
        coupling=parse_coupling(objective.coupling, data, source, lambda file: teacher_velocity(file, data=data)),
        path=path,
        prediction=prediction_name(objective.prediction),
        guidance=parse_guidance(objective.guidance),
        networks={} if proxy_network is None or proxy not in ("ema", "teacher") else {proxy: proxy_network},
    )
