"""From a checkpoint file to what is measured: weights, proxy, data and times, from the file unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mfdiag.errors import InputError, did_you_mean
from mfdiag.flow.datasets import load_data
from mfdiag.flow.times import parse_times
from mfdiag.measures.measure import Subject
from mfdiag.models.checkpoint import bundled, load_model

__all__ = ["load_subject"]

_BUNDLED = "bundled:eight_gaussians"  # name of the bundled checkpoint in tables: its path is the installation's
_DEFAULT_TIMES = "logit_normal"  # MeanFlow's own


def load_subject(
    path: Path,
    *,
    model: str | None = None,
    data: str | None = None,
    weights: str = "raw",
    proxy: str | None = None,
    times: str | None = None,
    say: Callable[[str], None],
) -> Subject:
    """The subject a checkpoint describes; arguments as the options of the same names.

    `say` receives what was assumed. Raises InputError for files that cannot be read, and where the file does not tell
    and no option does.
    """
    loaded = load_model(path, factory=model, weights=weights)
    description = loaded.description
    if data is None:
        if description is None:
            raise InputError(f"{path} does not say what data it was trained on: pass --data NAME or FILE.")
        data = description.data
    if times is None and description is not None:
        times = description.times
    elif times is None:
        times = _DEFAULT_TIMES
        say(f"{path} does not say how (r, t) were drawn: measuring under --times {parse_times(times).name}.")
    if proxy is None:
        proxy = "ema" if loaded.has_weights("ema") else "self"
    kind, _, teacher = proxy.partition("=")
    guide = None
    if kind == "teacher":
        if not teacher:
            raise InputError("--proxy teacher needs the teacher's checkpoint: teacher=PATH.")
        guide = load_model(teacher, factory=model, weights="raw").module
    elif kind == "ema":
        guide = loaded.with_weights("ema")
    elif kind not in ("self", "exact") or teacher:
        raise did_you_mean("proxy", proxy, ("self", "ema", "exact", "teacher=PATH"))
    found = load_data(data)
    classes = getattr(loaded.module, "num_classes", 0)
    if classes and found.num_classes > classes:
        raise InputError(f"{path} holds a network for {classes} classes, but {data} has {found.num_classes} labels.")
    run = path.stem if path.parent.name in ("", ".") else path.parent.name
    name = str(path)
    if path == bundled():
        run, name = "bundled", _BUNDLED
    return Subject(
        loaded.module,
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
    )
