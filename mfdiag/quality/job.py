"""The command's work over several checkpoints: measure each, write after each, then means over training seeds."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from mfdiag.figures import save_figures
from mfdiag.measures.job import Mode, Outcome, device_name, same_request
from mfdiag.measures.request import Progress, Subject
from mfdiag.models.inspection import inspect_checkpoint
from mfdiag.quality.prepared import Features, Prepared, prepare_quality
from mfdiag.quality.tidy import mean_over_seeds
from mfdiag.tables.provenance import manifest, write_manifest
from mfdiag.tables.store import check_writable, read_table, table_path, write_table

__all__ = ["QualityRequest", "run_quality"]

_IDENTITY = ["checkpoint", "checkpoint_sha256", "dataset", "weights"]


@dataclass(frozen=True)
class QualityRequest:
    """What is asked; fields as the arguments of `prepare_quality`. `device` and `chunk` change no number."""

    metrics: Sequence[str]
    nfe: Sequence[int]
    weights: Sequence[str]
    samples: int
    subsample: int
    seed: int
    features_name: str | None
    dtype: Any = field(default=None, repr=False)
    features: Features | None = field(default=None, repr=False)
    device: str = "cpu"
    chunk: int | None = None

    def prepare(self, subject: Subject) -> Prepared:
        """Metrics for the subject's data and source."""
        options = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("nfe", "weights")}
        return prepare_quality(subject.data, source=subject.source or "gaussian", **options)


def run_quality(
    checkpoints: Sequence[Path],
    load: Callable[[Path, str], Subject],
    request: QualityRequest,
    out: Path,
    mode: Mode,
    *,
    options: Mapping[str, Any],
    progress: Progress | None = None,
    say: Callable[[str], None],
) -> Outcome:
    """Measure table `quality` of each checkpoint and set of weights into `out`: table, manifest.json, figure.

    `load` gives the subject of a checkpoint and a key of weights; `options` are what it goes by, for the manifest. The
    table is written after each checkpoint; `resume` keeps those it already holds under the same request. Checkpoints
    whose descriptions differ in the seed alone also get the mean over seeds. Raises InputError as `run_job` does.
    """
    check_writable(out, ["quality"], mode)
    subjects = {(path, key): load(path, key) for path in checkpoints for key in request.weights}
    specification = _specification(request) | dict(options)
    done = pd.DataFrame()
    if mode == "resume" and table_path("quality", out).exists():
        same_request(out, "quality", specification)
        earlier = read_table("quality", out)
        done = earlier[earlier["quantity"] == "value"]
    measured = set(done[_IDENTITY].astype(str).itertuples(index=False, name=None)) if len(done) else set()
    prepared: dict[tuple[str, str], Prepared] = {}
    started = datetime.now(UTC)
    names: dict[Path, str] = {}

    def write(frame: pd.DataFrame) -> None:
        path = write_table("quality", frame, out)
        inputs = frame.loc[frame["quantity"] == "value", ["checkpoint", "checkpoint_sha256"]].drop_duplicates()
        entry = manifest(
            sys.argv,
            specification,
            seeds=[request.seed],
            inputs=list(inputs.itertuples(index=False, name=None)),
            started=started,
            finished=datetime.now(UTC),
            outputs=[path],
            device=device_name(request.device),
        )
        write_manifest(out, "quality", entry)

    try:
        for number, ((path, key), subject) in enumerate(subjects.items()):
            names[path] = subject.checkpoint
            if progress is not None:
                progress(f"quality of {subject.checkpoint}", number, len(subjects))
            if tuple(map(str, (subject.checkpoint, subject.sha256, subject.data.name, key))) in measured:
                say(f"{subject.checkpoint} is measured already.")
                continue
            place = subject.data.name, subject.source.name if subject.source else "gaussian"
            if place not in prepared:
                prepared[place] = request.prepare(subject)
            found = prepared[place].measure(
                subject.module,
                nfe=request.nfe,
                run=subject.run,
                checkpoint=subject.checkpoint,
                checkpoint_sha256=subject.sha256,
                step=subject.step,
                weights=key,
            )
            done = pd.concat([done, found], ignore_index=True)
            write(done)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"what is measured is saved in {out}, go on with --resume") from None
    means = [mean_over_seeds(done[done["checkpoint"].isin(group)]) for group in _seeds_of(names)]
    if means:
        write(pd.concat([done, *means], ignore_index=True))
    frames = {"quality": read_table("quality", out)}
    return Outcome(frames, [table_path("quality", out)], save_figures(frames, out))


def _seeds_of(names: Mapping[Path, str]) -> list[list[str]]:
    """Groups of at least two checkpoints, by name, whose descriptions differ in the seed alone."""
    groups: dict[str, dict[int, str]] = {}
    for path, name in names.items():
        description = inspect_checkpoint(path).description
        if description is not None:
            told = description.model_dump(mode="json")
            seed = told.pop("seed")
            told["specification"].pop("seed", None)
            groups.setdefault(json.dumps(told, sort_keys=True), {})[seed] = name
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def _specification(request: QualityRequest) -> dict[str, Any]:
    """Every option that decides the numbers, defaults filled in."""
    names = ("metrics", "nfe", "weights", "samples", "subsample", "seed", "features_name")
    told = {name: getattr(request, name) for name in names}
    return {"table": "quality", **told, "dtype": str(request.dtype).removeprefix("torch.")}
