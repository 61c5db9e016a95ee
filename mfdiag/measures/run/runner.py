"""The one runner of every command that measures: every subject of a job, here or on Ray, into a folder of results."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from mfdiag.errors import InputError
from mfdiag.estimators import find_estimator
from mfdiag.gradients.pass_checkpoint import PassCheckpoint
from mfdiag.measures.run.choice import choose_estimators, require_known_extras
from mfdiag.measures.run.convention_check import Doubt, check_convention
from mfdiag.measures.run.job import Identity, Job
from mfdiag.measures.run.measure_subject import measure_subject, why_no_posterior
from mfdiag.measures.run.ray_launcher import RayLauncher, Task, failed_cells
from mfdiag.measures.run.request import Progress, Request
from mfdiag.measures.run.result_folder import Mode, Outcome, ResultFolder, identities_of
from mfdiag.measures.run.subject import Subject, SubjectOptions, load_subject
from mfdiag.measures.run.table import MeasuredTable
from mfdiag.tables.store import read_table
from mfdiag.usercode import is_user_code
from mfdiag.world import current_world

__all__ = ["TableJob", "run"]

SubjectT = TypeVar("SubjectT")


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
            raise KeyboardInterrupt(folder.saved_so_far(saved, len(subjects))) from None
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
            subject,
            settings.samples,
            seed=self.request.seed,
            dtype=settings.dtype,
            device=settings.device,
            say=self.say,
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
        records = zip(identities_of(rows, self.identity_columns), rows.to_dict("records"), strict=True)
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
