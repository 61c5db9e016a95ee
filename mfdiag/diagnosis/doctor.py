"""The work of `mfdiag doctor`: examine each checkpoint, judge it, write doctor.parquet and doctor.json."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mfdiag.diagnosis.candidate import IDENTITY, Candidate, load_candidate
from mfdiag.diagnosis.course import Change, changes
from mfdiag.diagnosis.diagnosis import Diagnosis, diagnose
from mfdiag.diagnosis.evidence import Evidence, Facts
from mfdiag.diagnosis.examination import ExaminationOptions, examine
from mfdiag.diagnosis.finding import SEVERITIES
from mfdiag.diagnosis.training_log import TrainingLog
from mfdiag.gradients.pass_checkpoint import PassCheckpoint
from mfdiag.measures.run.job import Job
from mfdiag.measures.run.request import Progress
from mfdiag.measures.run.subject import SubjectOptions
from mfdiag.models.weights import NonfiniteWeightsError
from mfdiag.storage import atomic_write, sha256_of
from mfdiag.tables.check import conform
from mfdiag.tables.doctor import DOCTOR
from mfdiag.tables.store import read_table

__all__ = ["DoctorJob", "Nonfinite"]

_UNKNOWN = "unknown"  # where the weights could not be loaded


@dataclass(frozen=True)
class Nonfinite:
    """A checkpoint whose weights are NaN or infinite, so that nothing else can be measured.

    Attributes:
        checkpoint: Its name.
        sha256: Hash of its file.
        names: Names of the tensors.
    """

    checkpoint: str
    sha256: str
    names: Sequence[str]


class DoctorJob(Job[Candidate | Nonfinite]):
    """Examines and judges each checkpoint.

    Args:
        checkpoints: Files or folders of weights.
        options: How they are read.
        examination: How they are examined.
        progress: Receives (label, samples done, samples in all).
        say: Receives notes.
    """

    command = "doctor"
    tables = ("doctor",)
    identity_columns = IDENTITY
    device = "cpu"

    def __init__(
        self,
        checkpoints: Sequence[Path],
        options: SubjectOptions,
        examination: ExaminationOptions,
        *,
        progress: Progress | None,
        say: Callable[[str], None],
    ) -> None:
        self.checkpoints, self.options, self.examination = checkpoints, options, examination
        self.progress, self.say = progress, say
        self.seeds = [examination.seed]
        self.specification = {
            "table": "doctor",
            **{name: getattr(options, name) for name in options.__dataclass_fields__ if name != "proxy"},
            **{name: _plain(getattr(examination, name)) for name in examination.__dataclass_fields__},
        }
        self.diagnoses: dict[str, Diagnosis] = {}
        self.course: list[Change] = []

    def subjects(self) -> Sequence[Candidate | Nonfinite]:
        """Every checkpoint, loaded."""
        return [self._load(path) for path in self.checkpoints]

    def _load(self, path: Path) -> Candidate | Nonfinite:
        try:
            return load_candidate(path, self.options, self.say)
        except NonfiniteWeightsError as error:
            return Nonfinite(str(path), sha256_of(path), error.names)

    def identity(self, subject: Candidate | Nonfinite) -> tuple[str, ...]:
        """Checkpoint, hash, data set and sampler of (r, t)."""
        if isinstance(subject, Nonfinite):
            return tuple(map(str, (subject.checkpoint, subject.sha256, _UNKNOWN, _UNKNOWN)))
        return subject.identity

    def label(self, subject: Candidate | Nonfinite) -> str:
        """The checkpoint's name."""
        return subject.checkpoint if isinstance(subject, Nonfinite) else subject.subject.checkpoint

    def measure(self, subject: Candidate | Nonfinite, checkpoint: PassCheckpoint) -> Mapping[str, pd.DataFrame]:
        """Table `doctor` of one checkpoint."""
        start = time.perf_counter()
        if isinstance(subject, Nonfinite):
            evidence = Evidence(Facts(subject.checkpoint, nonfinite=subject.names), _nonfinite_frame(subject))
        else:
            evidence = examine(subject, self.examination, say=self.say, progress=self.progress)
        self.diagnoses[self.label(subject)] = diagnose(evidence, time.perf_counter() - start)
        return {"doctor": evidence.frame}

    def files(self, out: Path) -> list[Path]:
        """doctor.json: the diagnosis, or for several checkpoints the worst one and all of them under "checkpoints"."""
        path = out / "doctor.json"
        records = {name: diagnosis.record() for name, diagnosis in self.diagnoses.items()}
        earlier = _earlier(path) if len(records) < len(self.checkpoints) else {}
        everything = list((earlier | records).values())
        worst = min(everything, key=lambda record: _rank(record))
        self.course = changes(read_table("doctor", out)) if len(everything) > 1 else []
        content = worst if len(everything) == 1 else {**worst, "checkpoints": everything}
        content = content | ({"course": [change.record() for change in self.course]} if self.course else {})
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return [path]


def _rank(record: Mapping[str, Any]) -> int:
    """Order of diagnoses, the worst first."""
    severities = [finding["severity"] for finding in record["findings"]]
    return min((SEVERITIES.index(severity) for severity in severities), default=3)


def _earlier(path: Path) -> dict[str, dict[str, Any]]:
    """Diagnoses of checkpoints that a resumed run has already measured."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return {record["checkpoint"]: record for record in content.get("checkpoints", [content])}


def _plain(value: Any) -> Any:
    value = value.path if isinstance(value, TrainingLog) else value
    return value if value is None or isinstance(value, int | float) else str(value).removeprefix("torch.")


def _nonfinite_frame(subject: Nonfinite) -> pd.DataFrame:
    """The one row about a checkpoint whose weights are not finite."""
    count = float(len(subject.names))
    row = {
        "run": Path(subject.checkpoint).stem,
        "checkpoint": subject.checkpoint,
        "checkpoint_sha256": subject.sha256,
        "dataset": _UNKNOWN,
        "times": _UNKNOWN,
        "seed": 0,
        "layer": "all",
        "quantity": "nonfinite_weights",
        "value": count,
        "ci_low": count,
        "ci_high": count,
        "n_samples": 0,
        "status": "ok",
    }
    names = [column.name for column in DOCTOR.columns]
    return conform("doctor", pd.DataFrame([{name: row.get(name) for name in names}]))
