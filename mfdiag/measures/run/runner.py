"""The one runner of every command that measures: lock the folder, resume, measure, write tables and manifest."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import pandas as pd
import torch

from mfdiag._version import __version__
from mfdiag.errors import InputError, abbreviated
from mfdiag.estimators import find_estimator
from mfdiag.gradients.pass_checkpoint import PassCheckpoint
from mfdiag.inputs import changed_inputs, current_inputs
from mfdiag.locks import file_lock
from mfdiag.measures.run.choice import choose_estimators, require_known_extras
from mfdiag.measures.run.convention_check import Doubt, check_convention
from mfdiag.measures.run.job import Identity, Job
from mfdiag.measures.run.measure_subject import measure_subject, why_no_posterior
from mfdiag.measures.run.ray_launcher import RayLauncher, Task, failed_cells
from mfdiag.measures.run.request import Progress, Request
from mfdiag.measures.run.subject import Subject, SubjectOptions, load_subject
from mfdiag.measures.run.table import MeasuredTable
from mfdiag.storage import remove_orphans
from mfdiag.tables.provenance import manifest, manifest_lock, read_manifest, write_manifest
from mfdiag.tables.store import MANIFEST, check_writable, read_table, table_path, write_table, written_since
from mfdiag.usercode import is_user_code
from mfdiag.world import current_world

__all__ = ["Mode", "Outcome", "ResultFolder", "TableJob", "run"]

Mode = Literal["new", "overwrite", "resume"]
SubjectT = TypeVar("SubjectT")

_PARTIAL = ".partial"  # folder of unfinished passes, in the folder of the results


@dataclass(frozen=True)
class Outcome:
    """What a run wrote: frames by table, and the paths of the tables."""

    frames: dict[str, pd.DataFrame]
    tables: list[Path]


def run(
    job: Job[SubjectT],
    out: Path,
    mode: Mode,
    *,
    say: Callable[[str], None],
    warn: Callable[[str], None] | None = None,
    strict: bool = False,
    launcher: RayLauncher | None = None,
) -> Outcome:
    """Measure every subject of a job into a folder: tables and manifest.json.

    Tables are written whole after each subject. An interrupted run keeps them, and the state of the pass it was in;
    `resume` skips finished subjects and continues in the middle of the next one.

    Args:
        job: What to measure.
        out: Folder of the results.
        mode: What to do with earlier results in `out`.
        say: Receives one-line notes.
        warn: Receives what makes every number of a subject doubtful; None stands for `say`.
        strict: Whether to raise an error instead.
        launcher: Measures each subject in another process; None measures them here, one after another.

    Returns:
        The tables.

    Raises:
        InputError: The folder cannot be used, or holds results of other options; before anything is measured. Under
            `strict`, a subject's declared convention is refuted; before that subject is measured. Or a subject cannot
            be measured; with a launcher, after all others are.
        KeyboardInterrupt: The run was interrupted; its message says what is saved.
    """
    world = current_world()
    with _on_first(ResultFolder(out, job, mode, say)) as folder:
        subjects = world.together(job.subjects)  # all of them first: a bad last file must not cost hours
        _require_same_subjects([job.identity(subject) for subject in subjects])
        measured = world.on_first(folder.resume)
        remaining = _remaining(job, subjects, measured, say)
        doubted = partial(_take_doubt, folder, strict, warn or say)
        measure = _measure_here if launcher is None else partial(_measure_on_ray, launcher)
        try:
            for k, frames in measure(folder, subjects, remaining, doubted):
                world.together(folder.inputs.require_unchanged)
                world.on_first(partial(folder.add, frames, subjects))
                measured.add(job.identity(subjects[k]))
        except KeyboardInterrupt as error:
            if error.args:  # its message already says what is saved
                raise
            saved = sum(job.identity(subject) in measured for subject in subjects)
            raise KeyboardInterrupt(_saved_so_far(out, saved, len(subjects))) from None
        finished: list[Outcome] = []
        world.on_first(lambda: finished.append(folder.finish(subjects)))
        return finished[0] if finished else Outcome({}, [])  # other processes need no frames


def _take_doubt(
    folder: ResultFolder[SubjectT],
    strict: bool,
    warn: Callable[[str], None],
    subject: SubjectT,
    doubt: Doubt | None,
) -> None:
    """Records and reports a doubt; InputError where it is an error."""
    if doubt is not None and strict:
        raise InputError(f"{doubt.text} This is an error because of --strict.")
    if doubt is not None:
        warn(doubt.text)
    folder.doubts[folder.job.identity(subject)] = doubt


def _remaining(
    job: Job[SubjectT], subjects: Sequence[SubjectT], measured: set[Identity], say: Callable[[str], None]
) -> list[int]:
    """The numbers of the subjects that are neither measured nor the same as an earlier one."""
    remaining, seen = [], set(measured)
    for k, subject in enumerate(subjects):
        if job.identity(subject) in seen:
            say(f"{job.label(subject)} is measured already.")
        else:
            remaining.append(k)
        seen.add(job.identity(subject))
    return remaining


def _measure_here(
    folder: ResultFolder[SubjectT],
    subjects: Sequence[SubjectT],
    remaining: Sequence[int],
    doubted: Callable[[SubjectT, Doubt | None], None],
) -> Iterator[tuple[int, Mapping[str, pd.DataFrame]]]:
    """Number and frames of each subject, which is measured in this process."""
    job, world = folder.job, current_world()
    for k in remaining:
        subject = subjects[k]
        doubted(subject, job.doubt(subject))
        checkpoint = world.on_first(partial(folder.pass_checkpoint, job.identity(subject)))
        yield k, job.measure(subject, checkpoint)


def _measure_on_ray(
    launcher: RayLauncher,
    folder: ResultFolder[SubjectT],
    subjects: Sequence[SubjectT],
    remaining: Sequence[int],
    doubted: Callable[[SubjectT, Doubt | None], None],
) -> Iterator[tuple[int, Mapping[str, pd.DataFrame]]]:
    """The same for subjects that are measured by Ray, as they end; those that fail are an error when all have ended."""
    job, failures = folder.job, []
    identities = [job.identity(subject) for subject in subjects]
    tasks = [
        Task(job.label(subjects[k]), _measure_part, (job.part(k), identities[k], folder.pass_checkpoint(identities[k])))
        for k in remaining
    ]
    for cell in launcher.run(tasks, job.device, say=job.say, progress=job.progress):
        k = remaining[cell.number]
        if cell.failure is not None:
            failures.append((job.label(subjects[k]), cell.failure))
            continue
        doubt, frames = cell.result
        doubted(subjects[k], doubt)
        yield k, frames
    if failures:
        raise failed_cells(failures, len(tasks))
    folder.sort(subjects)


def _measure_part(
    say: Callable[[str], None], job: Job[Any], identity: Identity, checkpoint: PassCheckpoint
) -> tuple[Doubt | None, Mapping[str, pd.DataFrame]]:
    """The doubt and the frames of a job's only subject, in a process that loads it itself."""
    job.say = say
    (subject,) = job.subjects()
    if job.identity(subject) != identity:
        raise InputError(f"Expected the same files in all processes, but another {job.label(subject)} came.")
    return job.doubt(subject), job.measure(subject, checkpoint)


def _saved_so_far(out: Path, saved: int, subjects: int) -> str:
    """What an interrupted run leaves, as a clause."""
    in_the_middle = any((out / _PARTIAL).glob("*"))
    if not saved and not in_the_middle:
        return "nothing is saved"
    part = " and part of the next one" if in_the_middle else ""
    return f"{saved} of {subjects} checkpoints{part} are measured and saved in {out}; resume with --resume"


@contextmanager
def _on_first(folder: ResultFolder[SubjectT]) -> Iterator[ResultFolder[SubjectT]]:
    """The folder, opened on rank 0 alone; the other processes never write."""
    with ExitStack() as stack:
        current_world().on_first(lambda: bool(stack.enter_context(folder)))
        yield folder


def _require_same_subjects(identities: list[Identity]) -> None:
    """InputError where processes read different checkpoints."""
    for rank, others in enumerate(current_world().exchange(identities)):
        if others != identities:
            raise InputError(
                f"Expected the same checkpoints and data in all processes, but rank {rank} reads others. Make the "
                "files the same on all machines."
            )


class ResultFolder(Generic[SubjectT]):
    """The folder a job writes to: locked while it runs, its tables and its manifest always complete.

    Args:
        out: The folder.
        job: The job whose results it holds.
        mode: What to do with earlier results: those from before the command started. What other processes wrote since
            then is kept, as if it were resumed.
        say: Receives one-line notes.
    """

    def __init__(self, out: Path, job: Job[SubjectT], mode: Mode, say: Callable[[str], None]) -> None:
        self.out, self.job, self.mode, self.say = out, job, mode, say
        self.inputs = current_inputs()
        self.frames: dict[str, pd.DataFrame] = {}
        self.doubts: dict[Identity, Doubt | None] = {}
        self._locks = ExitStack()
        self._started = datetime.now(UTC)
        self._written = self._resumed = False

    def __enter__(self) -> ResultFolder[SubjectT]:
        tables, started = list(self.job.tables), self.inputs.started
        check_writable(self.out, tables, self.mode, started)
        self._locks.enter_context(_locked(self.out, self.job.command, self.say))
        check_writable(self.out, tables, self.mode, started)  # again: who held the lock may have written
        with file_lock(manifest_lock(self.out)):  # a killed process may have left its file
            remove_orphans(self.out, self.out / "figures", self.out / _PARTIAL)
        if self.mode != "resume" and self.job.replaces and written_since(self.out, tables, started):
            self.say(f"another process wrote to {self.out} meanwhile; its results are kept, and these are added.")
            self.mode = "resume"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._locks.close()

    def resume(self) -> set[Identity]:
        """Load the rows of an earlier run if the mode is "resume"; returns the identities of its finished subjects.

        Raises InputError if the earlier run had other options.
        """
        names = self.job.tables
        if self.mode != "resume" or not table_path(names[0], self.out).exists():
            return set()
        self._require_same_options()
        self._resumed = True
        frames = {name: read_table(name, self.out) for name in names}
        frames[names[0]] = self.job.rows_to_keep(frames[names[0]])
        # a run may have been killed after writing the first of its tables: keep the subjects that all tables hold
        identities = {name: _identities(frame, self.job.identity_columns) for name, frame in frames.items()}
        complete = set.intersection(*map(set, identities.values()))
        self.frames = {name: frame[[i in complete for i in identities[name]]] for name, frame in frames.items()}
        return complete

    def pass_checkpoint(self, identity: Identity) -> PassCheckpoint:
        """Where an interrupted pass over one subject is kept; another request or version never reads it."""
        named = (*identity, self.job.specification.get("coupling"))  # other data belong to other subjects
        read = [e for e in self.inputs.entries() if e["kind"] != "data" or e.get("of", e["path"]) in named]
        key = json.dumps([__version__, self.job.specification, identity, read], sort_keys=True, default=str)
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        checkpoint = PassCheckpoint(self.out / _PARTIAL / f"{self.job.command}-{digest}.pt", key)
        if self.mode != "resume":
            checkpoint.clear()
        return checkpoint

    def add(self, frames: Mapping[str, pd.DataFrame], subjects: Sequence[SubjectT]) -> None:
        """Appends the frames of one subject and writes tables and manifest."""
        for name, frame in frames.items():
            earlier = [self.frames[name]] if name in self.frames else []
            self.frames[name] = pd.concat([*earlier, frame], ignore_index=True)
        self._write(self.frames, subjects)

    def sort(self, subjects: Sequence[SubjectT]) -> None:
        """Put the rows into the order of the subjects, whichever were measured first."""
        place = {self.job.identity(subject): k for k, subject in enumerate(subjects)}
        for name, frame in self.frames.items():
            places = [place.get(identity, -1) for identity in _identities(frame, self.job.identity_columns)]
            self.frames[name] = frame.iloc[np.argsort(places, kind="stable")].reset_index(drop=True)
        if self.frames:
            self._write(self.frames, subjects)

    def finish(self, subjects: Sequence[SubjectT]) -> Outcome:
        """Adds what can only be computed at the end, and reads the tables back."""
        final = self.job.finish(self.frames, subjects) if self.frames else None
        if final is not None:
            self._write(final, subjects)
        names = self.job.tables
        return Outcome({name: read_table(name, self.out) for name in names}, [table_path(n, self.out) for n in names])

    def _write(self, frames: Mapping[str, pd.DataFrame], subjects: Sequence[SubjectT]) -> None:
        job = self.job
        if not self._written:  # a run that is killed between two renames resumes
            self._remove_replaced()
            self._write_manifest(frames, subjects, [])
            self._written = True
        # the main table last: where it is, all others are
        paths = [write_table(name, frames[name], self.out) for name in reversed(job.tables)][::-1]
        self._write_manifest(frames, subjects, [*paths, *job.files(self.out)])

    def _remove_replaced(self) -> None:
        """Removes the tables that this run replaces, the main one first: they have other options than the manifest."""
        if self.mode == "overwrite" and self.job.replaces:
            for name in self.job.tables:
                table_path(name, self.out).unlink(missing_ok=True)

    def _write_manifest(
        self, frames: Mapping[str, pd.DataFrame], subjects: Sequence[SubjectT], outputs: Sequence[Path]
    ) -> None:
        job, earlier = self.job, self._manifest_entry()
        main = job.rows_to_keep(frames[job.tables[0]])
        measured = main[list(job.identity_columns)].drop_duplicates()
        entry = manifest(
            sys.argv,
            {**job.specification, **job.describe(measured, subjects, earlier), **self._doubted()},
            seeds=job.seeds,
            inputs=_inputs(measured),
            started=self._started,
            finished=datetime.now(UTC),
            outputs=outputs,
            device=_device_name(job.device),
        )
        read = self.inputs.entries()
        if self._resumed:  # what the earlier rows were measured with
            read += [item for item in earlier.get("inputs", []) if "kind" in item and item not in read]
        entry["inputs"] += read
        write_manifest(self.out, job.command, entry)

    def _doubted(self) -> dict[str, Any]:
        """Under "doubts", the conventions that explain a subject better than the declared one; empty without any."""
        specification = self._manifest_entry().get("specification", {}) if self._resumed else {}
        records = [doubt.record for doubt in self.doubts.values() if doubt is not None]
        earlier = [record for record in specification.get("doubts", []) if record not in records]
        return {"doubts": [*earlier, *records]} if earlier or records else {}

    def _manifest_entry(self) -> dict[str, Any]:
        """The command's entry in the folder's manifest; empty if there is none."""
        return read_manifest(self.out).get(self.job.command, {})

    def _require_same_options(self) -> None:
        entry = self._manifest_entry()
        before = entry.get("specification", {})
        if not before:
            raise InputError(
                f"{self.out / MANIFEST} does not record the options of the tables in its folder, so --resume cannot "
                "add to them: pass --overwrite or another --out."
            )
        if files := changed_inputs(entry.get("inputs", []), self.inputs.entries()):
            raise InputError(
                f"{self.out} was measured before {abbreviated(files)} changed, so --resume would mix two measurements: "
                "restore the earlier content, or pass --overwrite or another --out."
            )
        changed = [name for name, value in self.job.specification.items() if before.get(name) != value]
        if changed:
            raise InputError(
                f"{self.out} was measured with other options ({', '.join(changed)}), so --resume cannot add to it: "
                "repeat them, or pass --overwrite or another --out."
            )


class TableJob(Job[Subject]):
    """Measures one table of several checkpoints.

    Args:
        table: What to measure.
        checkpoints: Files or folders of weights.
        options: How the checkpoints are read.
        request: Estimators, coefficients, batch sizes, settings of a pass.
        recorded: Further options for the manifest, which may not change between a run and its resumption.
        progress: Receives (label, samples done, samples in all).
        say: Receives one-line notes.
    """

    identity_columns = ("checkpoint", "checkpoint_sha256", "dataset", "proxy", "times")

    def __init__(
        self,
        table: MeasuredTable,
        checkpoints: Sequence[Path],
        options: SubjectOptions,
        request: Request,
        *,
        recorded: Mapping[str, Any],
        progress: Progress | None,
        say: Callable[[str], None],
    ) -> None:
        require_known_extras(request.extras)
        self.table, self.checkpoints, self.options, self.request = table, checkpoints, options, request
        self.progress, self.say = progress, say
        self.command = table.name
        self.tables = [schema.name for schema in table.schemas]
        self.specification = _specification(table, request) | dict(recorded)
        self.seeds = [request.seed]
        self.device = request.settings.device

    def subjects(self) -> Sequence[Subject]:
        """Every checkpoint, loaded, and the code of estimators, whose hash is compared when a run resumes."""
        for name in filter(is_user_code, self.request.estimators):
            find_estimator(name)
        return [load_subject(path, self.options, say=self.say, progress=self.progress) for path in self.checkpoints]

    def part(self, index: int) -> TableJob:
        """The job for one checkpoint."""
        job = copy.copy(self)
        job.checkpoints, job.progress, job.say = [self.checkpoints[index]], None, print
        return job

    def identity(self, subject: Subject) -> Identity:
        """Checkpoint, hash, data set, proxy and sampler of (r, t)."""
        values = (subject.checkpoint, subject.sha256, subject.data.name, subject.proxy_name, subject.times.name)
        return tuple(map(str, values))

    def label(self, subject: Subject) -> str:
        """The checkpoint's name."""
        return subject.checkpoint

    def doubt(self, subject: Subject) -> Doubt | None:
        """See `check_convention`."""
        settings = self.request.settings
        return check_convention(
            subject, settings.samples, seed=self.request.seed, dtype=settings.dtype, device=settings.device
        )

    def measure(self, subject: Subject, checkpoint: PassCheckpoint) -> Mapping[str, pd.DataFrame]:
        """The table's frames for one checkpoint."""
        return measure_subject(
            subject, self.table, self.request, progress=self.progress, say=self.say, checkpoint=checkpoint
        )

    def describe(self, rows: pd.DataFrame, subjects: Sequence[Subject], earlier: Mapping[str, Any]) -> dict[str, Any]:
        """What was measured, one record each: identity and axes; and what was left out, with the reason.

        Args:
            rows: The identities measured so far, one row each.
            subjects: The subjects of this run.
            earlier: The command's entry of the folder's manifest; its records stay as they are.

        Returns:
            "subjects"; "left_out" for tables of several estimators; "without_posterior" where it is not computed.
        """
        axes: dict[Identity, Mapping[str, Any]] = {self.identity(subject): subject.record for subject in subjects}
        for record in earlier.get("specification", {}).get("subjects", []):
            axes.setdefault(tuple(str(record[name]) for name in self.identity_columns), record)
        records = zip(_identities(rows, self.identity_columns), rows.to_dict("records"), strict=True)
        described: dict[str, Any] = {
            "subjects": [
                {**axes.get(key, {}), **{str(name): value for name, value in record.items()}} for key, record in records
            ]
        }
        reasons = {s.checkpoint: why_no_posterior(s, self.request) for s in subjects}
        if self.table.measure is None and any(reasons.values()):
            described["without_posterior"] = {name: reason for name, reason in reasons.items() if reason is not None}
        if "estimator" in self.table.options and not self.table.one_estimator:
            described["left_out"] = {
                s.checkpoint: choose_estimators(self.request.estimators, s, self.table)[1] for s in subjects
            }
        return described

    def files(self, out: Path) -> list[Path]:
        """The files the table is also written as."""
        if self.table.files is None:
            return []
        paths, note = self.table.files(read_table(self.table.name, out), out)
        self.say(note)
        return paths


def _specification(table: MeasuredTable, request: Request) -> dict[str, Any]:
    """Every option that decides the numbers, defaults filled in."""
    settings = asdict(request.settings)
    for name in ("chunk", "device"):  # these change no number
        settings.pop(name)
    return {
        "table": table.name,
        "beta": list(map(float, request.betas)),
        "gamma": list(map(float, request.gammas)),
        "batch_sizes": list(request.batch_sizes),
        "estimators": list(request.estimators),
        "weighting": request.weighting.name,
        "by_layer": request.by_layer,
        "seed": request.seed,
        "posterior": request.posterior,
        "extras": sorted(request.extras),
        **({"floor": request.floor} if "floor" in table.options else {}),
        **{**settings, "dtype": str(request.settings.dtype).removeprefix("torch.")},
        "bins": None if request.settings.bins is None else list(request.settings.bins),
    }


@contextmanager
def _locked(out: Path, command: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder's lock of a command; waits while another process holds it, and says so."""
    created = [folder for folder in (out, *out.parents) if not folder.exists()]

    def waiting() -> None:
        say(
            f"another process is running `mfdiag {command}` with the folder {out}: waiting until it ends. Ctrl-C stops "
            "waiting; another --out does not wait."
        )

    try:
        with file_lock(out / f".{command}.lock", waiting):
            yield
    finally:
        with suppress(OSError):  # still empty if nothing was measured
            for folder in created:
                folder.rmdir()


def _inputs(measured: pd.DataFrame) -> list[tuple[str, str]]:
    """(checkpoint, hash) of what was measured; empty if the job has none."""
    if "checkpoint" not in measured:
        return []
    return list(measured[["checkpoint", "checkpoint_sha256"]].drop_duplicates().itertuples(index=False, name=None))


def _identities(frame: pd.DataFrame, columns: Sequence[str]) -> list[Identity]:
    """The identity of each row's subject."""
    return list(frame[list(columns)].astype(str).itertuples(index=False, name=None))


def _device_name(device: str) -> str:
    """The name of a device in the manifest: for a GPU, its model."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") and torch.cuda.is_available() else device
