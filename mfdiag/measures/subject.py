"""From a checkpoint file to what is measured: weights, proxy and draws, from the file unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mfdiag.errors import InputError, did_you_mean
from mfdiag.flow.couplings import parse_coupling
from mfdiag.flow.data.datasets import Data, load_data
from mfdiag.flow.data.scale_check import check_scale, shape_hint
from mfdiag.flow.guidance import parse_guidance
from mfdiag.flow.paths import parse_path
from mfdiag.flow.sources import parse_source
from mfdiag.flow.times import parse_times
from mfdiag.measures.request import Subject
from mfdiag.models.cards.card import Card
from mfdiag.models.checkpoint import bundled, load_model
from mfdiag.models.prediction import as_average_velocity, prediction_name
from mfdiag.models.teacher import load_teacher, teacher_velocity
from mfdiag.usercode import is_user_code

__all__ = ["load_subject"]

_BUNDLED = "bundled:eight_gaussians"  # name of the bundled checkpoint in tables: its path is the installation's
_DEFAULTS = {"source": "gaussian", "coupling": "independent", "path": "linear", "prediction": "u"}
_DEFAULT_TIMES = "logit_normal"  # MeanFlow's own


def load_subject(
    checkpoint: Path,
    *,
    model: str | None = None,
    data: str | None = None,
    weights: str = "raw",
    proxy: str | None = None,
    times: str | None = None,
    source: str | None = None,
    coupling: str | None = None,
    path: str | None = None,
    prediction: str | None = None,
    guidance: str | None = None,
    say: Callable[[str], None],
) -> Subject:
    """The subject a checkpoint describes; arguments as the options of the same names.

    `say` receives what was assumed. Raises InputError for files that cannot be read, and where the file does not tell
    and no option does.
    """
    loaded = load_model(checkpoint, model=model, weights=weights)
    description, card = loaded.description, loaded.card
    if data is None:
        if description is None:
            raise InputError(f"{checkpoint} does not say what data it was trained on: pass --data NAME or FILE.")
        data = description.data
    if card is not None:
        say(f"{card.name} makes the network with {card.factory}, whose code is run.")
    if times is None and description is not None:
        times = description.times
    elif times is None:
        times = _DEFAULT_TIMES
        say(f"{checkpoint} does not say how (r, t) were drawn: measuring under --times {parse_times(times).name}.")
    given = {"source": source, "coupling": coupling, "path": path, "prediction": prediction}
    if card is not None:  # the user's own word, unlike what a checkpoint says, so that code it names is run
        axes = {name: given[name] or value for name, value in card.axes.items()}
    else:
        told = {name: getattr(description, name, default) for name, default in _DEFAULTS.items()}
        axes = {name: given[name] or _told(checkpoint, name, value) for name, value in told.items()}
    found = load_data(data, **({} if card is None else card.data.statistics))
    if card is not None:
        _require_fitting(card, found, say)
        standard = card.data.scale if card.data.std is not None else None  # else the scale is what gives about 1
        check_scale(found, say, std=abs(standard or 1))
    way = parse_path(axes["path"])
    start = parse_source(axes["source"], found)
    if proxy is None:
        proxy = "ema" if loaded.has_weights("ema") else "self"
    kind, _, teacher = proxy.partition("=")
    guide = None
    if kind == "teacher":
        if not teacher:
            raise InputError("--proxy teacher needs the teacher's checkpoint: teacher=PATH.")
        guide = load_teacher(teacher, model, axes["prediction"], way.name)
    elif kind == "ema":
        guide = as_average_velocity(loaded.with_weights("ema"), axes["prediction"], way)
    elif kind not in ("self", "exact") or teacher:
        raise did_you_mean("proxy", proxy, ("self", "ema", "exact", "teacher=PATH"))
    networks = {} if guide is None else {kind: guide}
    if kind != "ema" and weights == "raw" and loaded.has_weights("ema"):
        networks["ema"] = as_average_velocity(loaded.with_weights("ema"), axes["prediction"], way)
    classes = getattr(loaded.module, "num_classes", 0)
    if classes and found.num_classes > classes:
        raise InputError(
            f"{checkpoint} holds a network for {classes} classes, but {data} has {found.num_classes} labels."
        )
    run = checkpoint.stem if checkpoint.parent.name in ("", ".") else checkpoint.parent.name
    name = str(checkpoint)
    if checkpoint == bundled():
        run, name = "bundled", _BUNDLED
    return Subject(
        as_average_velocity(loaded.module, axes["prediction"], way),
        found,
        parse_times(times),
        kind,  # type: ignore[arg-type]
        guide,
        proxy,
        run=run,
        checkpoint=name,
        sha256=loaded.sha256,
        step=loaded.step,
        conditional=bool(classes),
        source=start,
        coupling=parse_coupling(axes["coupling"], found, start, lambda file: teacher_velocity(file, model)),
        path=way,
        prediction=prediction_name(axes["prediction"]),
        networks=networks,
        guidance=parse_guidance(guidance or "none"),
    )


def _require_fitting(card: Card, data: Data, say: Callable[[str], None]) -> None:
    """Refuses data that the card's network does not take."""
    shape, told = card.data.shape, card.conditioning
    if shape is not None and data.shape != shape:
        raise InputError(
            f"{card.name} says that samples have the shape {list(shape)}, but {data.name} has {list(data.shape)}; "
            f"{shape_hint(data.shape, shape) or 'pass --data of that shape, or correct data.shape'}."
        )
    if told.kind != "none" and not data.num_classes:
        if told.null is None:
            raise InputError(
                f"{card.name} hands over labels and names no null label, but {data.name} has no labels; pass --data "
                "with labels, or give conditioning.null."
            )
        say(f"{data.name} has no labels: the network is given its null label.")


def _told(checkpoint: Path, axis: str, value: str) -> str:
    """What the checkpoint says of an axis; code it names is not run unless the user names it too."""
    if is_user_code(value):
        raise InputError(
            f"{checkpoint} was trained with the {axis} {value}, which is code: pass --{axis} {value} to run it."
        )
    return value
