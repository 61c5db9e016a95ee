"""The verdict of `mfdiag doctor`, read from doctor.json."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from mfdiag.errors import InputError, plain_validation
from mfdiag.numbers import with_interval
from mfdiag.reporting.sentences import is_measurable
from mfdiag.tables.store import read_json

__all__ = [
    "DOCTOR",
    "DoctorChange",
    "DoctorEffect",
    "DoctorEvidence",
    "DoctorFinding",
    "DoctorRemedy",
    "DoctorVerdict",
    "NotChecked",
    "read_verdict",
]

DOCTOR = "doctor.json"


class DoctorEffect(BaseModel):
    """A quantity with its 95 % interval."""

    quantity: str
    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None

    @property
    def text(self) -> str:
        """The value and its interval, or that it is not measurable."""
        if self.ci_low is not None and not is_measurable({"status": "ok", **self.model_dump()}):
            return "not measurable"
        value, low, high = (float("nan") if x is None else x for x in (self.value, self.ci_low, self.ci_high))
        return with_interval(value, low, high)


class DoctorEvidence(DoctorEffect):
    """A measured quantity, what is expected of a healthy model, and where it was measured."""

    expected: str | float | None = None
    where: str | None = None


class DoctorRemedy(BaseModel):
    """What to do: the option or line of code, its measured effect and its cost."""

    action: str
    option: str | None = None
    effect: DoctorEffect | None = None
    cost: str | float | None = None


class DoctorFinding(BaseModel):
    """What is wrong, how that was measured, why it matters and what helps."""

    code: str
    severity: Literal["critical", "warning", "note"]
    title: str
    summary: str = ""
    certainty: str = ""
    evidence: list[DoctorEvidence] = []
    why: str = ""
    remedies: list[DoctorRemedy] = []


class NotChecked(BaseModel):
    """What was not checked, and why."""

    code: str
    reason: str


class DoctorChange(BaseModel):
    """What changed between two checkpoints of a run."""

    sentence: str


class DoctorVerdict(BaseModel):
    """The contents of doctor.json: of one checkpoint, or of the worst one, with all of them in `checkpoints`."""

    verdict: str
    healthy: bool
    checkpoint: str | list[str] | None = None
    seconds: float | None = None
    noise: str = ""
    findings: list[DoctorFinding] = []
    not_checked: list[NotChecked] = []
    checkpoints: list[DoctorVerdict] = []
    course: list[DoctorChange] = []

    @property
    def severity(self) -> str:
        """The worst severity of the findings; empty for a healthy checkpoint."""
        worst = [name for name in ("critical", "warning", "note") if name in {one.severity for one in self.findings}]
        return "" if self.healthy else next(iter(worst), "critical")


def read_verdict(folder: Path) -> DoctorVerdict | None:
    """The verdict of the folder; None without one. Raises InputError for a file that is not in the format."""
    path = folder / DOCTOR
    if not path.exists():
        return None
    try:
        return DoctorVerdict.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {plain_validation(first['msg'])}"
        raise InputError(
            f"{path} is not in the format of `mfdiag doctor` ({reason}). Run `mfdiag doctor` again."
        ) from error
