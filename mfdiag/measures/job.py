"""A command's work over several checkpoints: measure, write after each, go on where an earlier run stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from mfdiag.errors import InputError
from mfdiag.figures.render import save_figures
from mfdiag.measures.measure import Progress, Request, Subject, measure_subject
from mfdiag.tables.provenance import manifest, write_manifest
from mfdiag.tables.store import MANIFEST, check_writable, read_json, read_table, write_table

__all__ = ["Outcome", "run_job"]

_WRITTEN = {"sweep": ("sweep",), "variance": ("variance", "samples"), "coefficient": ("coefficient",)}

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
    progress: Progress | None = None,
    say: Callable[[str], None],
) -> Outcome:
    """Measure `table` for each checkpoint into `out`: tables, manifest.json, figures.

    Tables are written whole after each checkpoint, so an interrupted job loses at most the one being measured;
    `resume` skips checkpoints already there under the same request.
    Raises InputError before anything is measured where `out` cannot be used.
    """
    written = _WRITTEN[table]
    check_writable(out, list(written), mode)
    subjects = [load(path) for path in checkpoints]  # all of them first: a bad last file must not cost hours
    specification = _specification(table, request, subjects)
    frames: dict[str, list[pd.DataFrame]] = {name: [] for name in written}
    done: set[tuple[str | None, ...]] = set()
    if mode == "resume" and all((out / f"{name}.parquet").exists() for name in written):
        _same_request(out, table, specification)
        for name in written:
            frames[name].append(read_table(name, out))
        done = set(frames[table][0][_IDENTITY].astype(str).itertuples(index=False, name=None))
    started = datetime.now(UTC)
    paths: list[Path] = []
    for subject in subjects:
        if _identity(subject) in done:
            say(f"{subject.checkpoint} is measured already.")
            continue
        for name, frame in measure_subject(subject, table, request, progress=progress, say=say).items():
            frames[name].append(frame)
        paths = [write_table(name, pd.concat(frames[name], ignore_index=True), out) for name in written]
        entry = manifest(
            sys.argv,
            specification,
            seeds=[request.seed],
            inputs=[(s.checkpoint, s.sha256 or "") for s in subjects],
            started=started,
            finished=datetime.now(UTC),
            outputs=paths,
        )
        write_manifest(out, table, entry)
    found = {name: read_table(name, out) for name in written}
    paths = [out / f"{name}.parquet" for name in written]
    return Outcome(found, paths, save_figures(found, out))


_IDENTITY = ["checkpoint", "checkpoint_sha256", "dataset", "proxy", "times"]


def _identity(subject: Subject) -> tuple[str, ...]:
    known = (subject.checkpoint, subject.sha256, subject.data.name, subject.proxy_name, subject.times.name)
    return tuple(map(str, known))


def _specification(table: str, request: Request, subjects: Sequence[Subject]) -> dict[str, Any]:
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
        **{**settings, "dtype": str(request.settings.dtype).removeprefix("torch.")},
        "bins": None if request.settings.bins is None else list(request.settings.bins),
        "subjects": [_identity(subject) for subject in subjects],
    }


def _same_request(out: Path, table: str, specification: dict[str, Any]) -> None:
    entry = read_json(out / MANIFEST).get(table, {}) if (out / MANIFEST).exists() else {}
    before = entry.get("specification", {})
    changed = [k for k, v in specification.items() if k != "subjects" and before.get(k) != v]
    if changed:
        raise InputError(
            f"{out} was measured with other options ({', '.join(changed)}), so --resume cannot add to it: "
            "repeat them, or pass --overwrite or another --out."
        )
