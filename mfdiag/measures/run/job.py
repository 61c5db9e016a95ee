"""A command's work, as the runner sees it. Importing this file does not import torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import pandas as pd

    from mfdiag.gradients.pass_checkpoint import PassCheckpoint
    from mfdiag.measures.run.convention_check import Doubt

__all__ = ["Identity", "Job"]

Identity = tuple[str, ...]
SubjectT = TypeVar("SubjectT")


class Job(ABC, Generic[SubjectT]):
    """What a command measures of each subject, and how its results are identified and described.

    Attributes:
        command: Name of the command, its key in the manifest.
        tables: Names of the tables it writes, the main one first.
        identity_columns: Columns of the main table that identify its subjects.
        specification: Every option that decides the numbers, for the manifest and for resuming.
        seeds: Seeds of the samples.
        device: Where the network runs.
        replaces: Whether a run that overwrites removes the earlier tables; otherwise the job keeps rows of them.
        say: Receives one-line notes.
        progress: Receives (label, done, total), if anything does.
    """

    command: str
    tables: Sequence[str]
    identity_columns: Sequence[str]
    specification: Mapping[str, Any]
    seeds: Sequence[int]
    device: str
    replaces: bool = True
    say: Callable[[str], None]
    progress: Callable[[str, int, int], None] | None = None

    @abstractmethod
    def subjects(self) -> Sequence[SubjectT]:
        """Everything to measure, loaded before anything is measured."""

    @abstractmethod
    def identity(self, subject: SubjectT) -> Identity:
        """The values of `identity_columns`, as strings."""

    @abstractmethod
    def label(self, subject: SubjectT) -> str:
        """What notes call the subject."""

    @abstractmethod
    def measure(self, subject: SubjectT, checkpoint: PassCheckpoint) -> Mapping[str, pd.DataFrame]:
        """Frames by table name; an interrupted pass leaves its state in `checkpoint`."""

    def part(self, index: int) -> Job[SubjectT]:
        """The same work for one of its subjects, by number, without progress: what another process can do."""
        raise NotImplementedError

    def doubt(self, subject: SubjectT) -> Doubt | None:
        """A convention that explains the subject's file better than the declared one beyond doubt, if there is one."""
        return None

    def rows_to_keep(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of the main table that a resumed run keeps; the others are computed again."""
        return frame

    def describe(self, rows: pd.DataFrame, subjects: Sequence[SubjectT], earlier: Mapping[str, Any]) -> dict[str, Any]:
        """Further entries of the manifest's specification.

        Args:
            rows: The identities measured so far, one row each.
            subjects: The subjects of this run.
            earlier: The command's entry of the folder's manifest, empty where there is none.

        Returns:
            Key -> value.
        """
        return {}

    def files(self, out: Path) -> list[Path]:
        """Writes the files that are made of the tables so far, and returns their paths."""
        return []

    def finish(
        self, frames: Mapping[str, pd.DataFrame], subjects: Sequence[SubjectT]
    ) -> Mapping[str, pd.DataFrame] | None:
        """Frames with what can only be computed once every subject is measured; None where nothing is added."""
        return None
