"""The verdict of `mfdiag doctor`, read from doctor.json."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from mfdiag.errors import InputError, plain_validation
from mfdiag.numbers import with_interval
from mfdiag.tables.store import read_json

__all__ = ["DOCTOR", "DoctorFinding", "Effect", "Evidence", "Remedy", "Unchecked", "Verdict", "read_verdict"]

DOCTOR = "doctor.json"


class Effect(BaseModel):
    """A quantity with its 95 % interval."""

    quantity: str
    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None

    @property
    def text(self) -> str:
        """The value and its interval."""
        value, low, high = (float("nan") if x is None else x for x in (self.value, self.ci_low, self.ci_high))
        return with_interval(value, low, high)


class Evidence(Effect):
    """A measured quantity, what is expected of a healthy model, and where it was measured."""

    expected: str | float | None = None
    where: str | None = None


class Remedy(BaseModel):
    """What to do: the option or line of code, its measured effect and its cost."""

    action: str
    option: str | None = None
    effect: Effect | None = None
    cost: str | float | None = None


class DoctorFinding(BaseModel):
    """What is wrong, how that was measured, why it matters and what helps."""

    code: str
    severity: Literal["critical", "warning", "note"]
    title: str
    evidence: list[Evidence] = []
    why: str = ""
    remedies: list[Remedy] = []


class Unchecked(BaseModel):
    """What was not checked, and why."""

    code: str
    reason: str


class Verdict(BaseModel):
    """The contents of doctor.json."""

    verdict: str
    healthy: bool
    checkpoint: str | list[str] | None = None
    seconds: float | None = None
    findings: list[DoctorFinding] = []
    not_checked: list[Unchecked] = []


def read_verdict(folder: Path) -> Verdict | None:
    """The verdict of the folder; None without one. Raises InputError for a file that is not in the format."""
    path = folder / DOCTOR
    if not path.exists():
        return None
    try:
        return Verdict.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {plain_validation(first['msg'])}"
        raise InputError(
            f"{path} is not in the format of `mfdiag doctor` ({reason}). Run `mfdiag doctor` again."
        ) from error
