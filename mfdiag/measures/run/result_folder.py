"""The folder of a run's results: locked, resumed, its tables and its manifest written together."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import pandas as pd
import torch

from mfdiag._version import __version__
from mfdiag.errors import InputError, abbreviated
from mfdiag.gradients.pass_checkpoint import PassCheckpoint
from mfdiag.inputs import changed_inputs, current_inputs
from mfdiag.locks import file_lock
from mfdiag.measures.run.convention_check import Doubt
from mfdiag.measures.run.job import Identity, Job
from mfdiag.storage import remove_orphans
from mfdiag.tables.provenance import manifest, manifest_lock, read_manifest, write_manifest
from mfdiag.tables.store import MANIFEST, check_writable, read_table, table_path, write_table, written_since

__all__ = ["Mode", "Outcome", "ResultFolder", "identities_of"]

Mode = Literal["new", "overwrite", "resume"]
SubjectT = TypeVar("SubjectT")

_PARTIAL = ".partial"  # folder of unfinished passes, in the folder of the results


@dataclass(frozen=True)
class Outcome:
    """What a run wrote: frames by table, and the paths of the tables."""

    frames: dict[str, pd.DataFrame]
    tables: list[Path]


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
        identities = {name: identities_of(frame, self.job.identity_columns) for name, frame in frames.items()}
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
            places = [place.get(identity, -1) for identity in identities_of(frame, self.job.identity_columns)]
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

    def saved_so_far(self, saved: int, subjects: int) -> str:
        """What an interrupted run leaves, as a clause."""
        in_the_middle = any((self.out / _PARTIAL).glob("*"))
        if not saved and not in_the_middle:
            return "nothing is saved"
        part = " and part of the next one" if in_the_middle else ""
        return f"{saved} of {subjects} checkpoints{part} are measured and saved in {self.out}; resume with --resume"

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


def identities_of(frame: pd.DataFrame, columns: Sequence[str]) -> list[Identity]:
    """The identity of each row's subject.

    Args:
        frame: Rows.
        columns: Names of the identity's columns.

    Returns:
        The identities, in the order of the rows.
    """
    return list(frame[list(columns)].astype(str).itertuples(index=False, name=None))


def _device_name(device: str) -> str:
    """The name of a device in the manifest: for a GPU, its model."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") and torch.cuda.is_available() else device
