"""A command's work over several checkpoints: measure, write after each, go on where an earlier run stopped."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from mfdiag._version import __version__
from mfdiag.errors import InputError
from mfdiag.figures import save_figures
from mfdiag.gradients.pass_checkpoint import PassCheckpoint
from mfdiag.measures.chosen import chosen_estimators
from mfdiag.measures.measure import measure_subject
from mfdiag.measures.request import Progress, Request, Subject
from mfdiag.tables.densities import write_densities
from mfdiag.tables.provenance import manifest, write_manifest
from mfdiag.tables.store import MANIFEST, check_writable, read_json, read_table, table_path, write_table

__all__ = ["Mode", "Outcome", "device_name", "run_job", "same_request"]

_WRITTEN = {
    "sweep": ("sweep",),
    "variance": ("variance", "samples"),
    "coefficient": ("coefficient",),
    "compare": ("compare",),
    "times": ("times",),
}

Mode = Literal["new", "overwrite", "resume"]


@dataclass(frozen=True)
class Outcome:
    """What a job left: frames by table, and the files written."""

    frames: dict[str, pd.DataFrame]
    tables: list[Path]
    figures: list[Path]


def run_job(
    table: str,
    checkpoints: Sequence[Path],
    load: Callable[[Path], Subject],
    request: Request,
    out: Path,
    mode: Mode,
    *,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None],
) -> Outcome:
    """Measure `table` for each checkpoint into `out`: tables, manifest.json, figures.

    Tables are written whole after each checkpoint, and the one being measured when a job is interrupted is kept as it
    stands; `resume` skips checkpoints already there under the same request and goes on in the middle of the next.
    `options` are what `load` goes by and the tables do not tell, for the manifest; they may not change between a job
    and its resumption.
    Raises InputError before anything is measured where `out` cannot be used, KeyboardInterrupt with what is saved.
    """
    names = _WRITTEN[table]
    check_writable(out, list(names), mode)
    subjects = [load(path) for path in checkpoints]  # all of them first: a bad last file must not cost hours
    specification = _specification(table, request) | dict(options or {})
    frames: dict[str, list[pd.DataFrame]] = {name: [] for name in names}
    done: set[tuple[str, ...]] = set()
    if mode == "resume" and all(table_path(name, out).exists() for name in names):
        same_request(out, table, specification)
        frames = {name: [frame] for name, frame in _earlier(out, names).items()}
        done = set(_identities(frames[table][0]))
    started = datetime.now(UTC)
    try:
        for subject in subjects:
            if _identity(subject) in done:
                say(f"{subject.checkpoint} is measured already.")
                continue
            partial = _partial(out, specification, _identity(subject))
            if mode != "resume":
                partial.clear()
            measured_now = measure_subject(subject, table, request, progress=progress, say=say, partial=partial)
            for name, frame in measured_now.items():
                frames[name].append(frame)
            paths = [write_table(name, pd.concat(frames[name], ignore_index=True), out) for name in names]
            if table == "times":
                densities = write_densities(read_table(table, out), out)
                say(f"to train or measure with what was found: {', '.join(f'density:{path}' for path in densities)}.")
                paths += densities
            measured = pd.concat([frame[_IDENTITY] for frame in frames[table]]).drop_duplicates()
            entry = manifest(
                sys.argv,
                specification
                | {"subjects": _records(measured, subjects, _entry(out, table))}
                | _left_out(table, request, subjects),
                seeds=[request.seed],
                inputs=list(measured[["checkpoint", "checkpoint_sha256"]].itertuples(index=False, name=None)),
                started=started,
                finished=datetime.now(UTC),
                outputs=paths,
                device=device_name(request.settings.device),
            )
            write_manifest(out, table, entry)
            done.add(_identity(subject))
    except KeyboardInterrupt:
        saved = sum(_identity(subject) in done for subject in subjects)
        raise KeyboardInterrupt(
            f"{saved} of {len(subjects)} checkpoints are measured and saved in {out}, go on with --resume"
        ) from None
    found = {name: read_table(name, out) for name in names}
    return Outcome(found, [table_path(name, out) for name in names], save_figures(found, out))


def _partial(out: Path, specification: Mapping[str, Any], identity: tuple[str, ...]) -> PassCheckpoint:
    """Where an interrupted measurement of one subject is kept; another request or version never reads it."""
    key = json.dumps([__version__, specification, identity], sort_keys=True, default=str)
    name = f"{specification['table']}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
    return PassCheckpoint(out / ".partial" / name, key)


def device_name(device: str) -> str:
    """What the manifest calls a device: the model of a GPU."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


_IDENTITY = ["checkpoint", "checkpoint_sha256", "dataset", "proxy", "times"]


def _identity(subject: Subject) -> tuple[str, ...]:
    known = (subject.checkpoint, subject.sha256, subject.data.name, subject.proxy_name, subject.times.name)
    return tuple(map(str, known))


def _identities(frame: pd.DataFrame) -> list[tuple[str, ...]]:
    """`_identity` of each row's subject."""
    return list(frame[_IDENTITY].astype(str).itertuples(index=False, name=None))


def _records(measured: pd.DataFrame, subjects: Sequence[Subject], before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was measured, a record each: identity, source, coupling, path, prediction; of earlier jobs as they wrote."""
    axes = {_identity(subject): subject.axes for subject in subjects}
    for record in before.get("specification", {}).get("subjects", []):
        axes.setdefault(tuple(str(record[name]) for name in _IDENTITY), record)
    records = zip(_identities(measured), measured.to_dict("records"), strict=True)
    return [axes.get(key, {}) | {str(name): value for name, value in record.items()} for key, record in records]


def _left_out(table: str, request: Request, subjects: Sequence[Subject]) -> dict[str, Any]:
    """For the commands that measure estimators: those that could not be, by checkpoint and reason."""
    if table not in ("variance", "compare"):
        return {}
    return {"left_out": {s.checkpoint: chosen_estimators(request.estimators, s, table)[1] for s in subjects}}


def _entry(out: Path, table: str) -> dict[str, Any]:
    """What the folder's manifest says of the command; empty where there is none."""
    return read_json(out / MANIFEST).get(table, {}) if (out / MANIFEST).exists() else {}


def _earlier(out: Path, names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Rows of the subjects that all tables hold: a run may have been killed after writing the first of them."""
    found = {name: read_table(name, out) for name in names}
    identities = {name: _identities(frame) for name, frame in found.items()}
    whole = set.intersection(*map(set, identities.values()))
    return {name: frame[[key in whole for key in identities[name]]] for name, frame in found.items()}


def _specification(table: str, request: Request) -> dict[str, Any]:
    """Every option that decides the numbers, defaults filled in."""
    settings = asdict(request.settings)
    for name in ("chunk", "device"):  # these change no number
        settings.pop(name)
    return {
        "table": table,
        "beta": list(map(float, request.betas)),
        "gamma": list(map(float, request.gammas)),
        "batch_sizes": list(request.batch_sizes),
        "estimators": list(request.estimators),
        "weighting": request.weighting.name,
        "by_layer": request.by_layer,
        "seed": request.seed,
        "posterior": request.posterior,
        "extras": sorted(request.extras),
        **({"floor": request.floor} if table == "times" else {}),
        **{**settings, "dtype": str(request.settings.dtype).removeprefix("torch.")},
        "bins": None if request.settings.bins is None else list(request.settings.bins),
    }


def same_request(out: Path, table: str, specification: dict[str, Any]) -> None:
    """Raises InputError where the manifest in `out` tells of another specification of the command `table`."""
    before = _entry(out, table).get("specification", {})
    changed = [name for name, value in specification.items() if before.get(name) != value]
    if changed:
        raise InputError(
            f"{out} was measured with other options ({', '.join(changed)}), so --resume cannot add to it: "
            "repeat them, or pass --overwrite or another --out."
        )
