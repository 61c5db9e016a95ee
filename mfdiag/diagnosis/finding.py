"""What a finding is: a rule on measurements, why it matters and what to do. One file each in `findings/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, get_args

from mfdiag.diagnosis.evidence import Evidence, Value
from mfdiag.plugins import files_of, installed

__all__ = ["SEVERITIES", "Detection", "Finding", "Severity", "above_healthy", "all_findings"]

Severity = Literal["critical", "warning", "note"]

SEVERITIES: Sequence[Severity] = get_args(Severity)
"""The worst first."""


@dataclass(frozen=True)
class Detection:
    """That a finding applies to a checkpoint.

    Attributes:
        severity: critical: training cannot work so; warning: it costs much; note: worth knowing.
        summary: One sentence with the numbers that tell.
        evidence: The measurements it rests on.
        expected: What healthy models have, by quantity, in words.
        where: Times, layers or samples, in words; empty for everywhere.
        strength: By which findings of one severity are ordered: how far beyond healthy models, as a factor.
        title: Replaces the finding's title where that depends on what was measured.
    """

    severity: Severity
    summary: str
    evidence: Sequence[Value] = ()
    expected: Mapping[str, str] = field(default_factory=dict)
    where: str = ""
    strength: float = 1.0
    title: str = ""

    @property
    def certainty(self) -> str:
        """How sure: by how far the interval is beyond healthy models."""
        return "beyond doubt" if self.strength >= 3 else "likely"


def above_healthy(evidence: Evidence, value: Value | None, summary: str, *, by_time: bool = False) -> Detection | None:
    """A warning where a measurement exceeds what healthy models have.

    Args:
        evidence: What was measured.
        value: The measurement; None where there is none.
        summary: One sentence, in which {} stands for its value.
        by_time: Whether to say at which times it is largest.

    Returns:
        The detection; None where the interval does not lie above.
    """
    if value is None:
        return None
    usual = evidence.usual(value.quantity)
    if not value.above(usual.high):
        return None
    weights = {"weights": value.keys["weights"]} if "weights" in value.keys else {}
    largest = evidence.largest(value.quantity, "time", **weights) if by_time else None
    return Detection(
        "warning",
        summary.format(f"{value.value:.2g}"),
        [value] if largest is None else [value, largest],
        {value.quantity: f"below {usual.high:.2g}"},
        where="" if largest is None else largest.where,
        strength=value.low / usual.high,
    )


@dataclass(frozen=True)
class Finding:
    """One kind of fault or limit.

    Attributes:
        code: Its name in doctor.json, a contract.
        title: What is wrong, in a few words.
        needs: Quantities of table `doctor` without which it cannot be judged.
        rule: Judges the evidence, by intervals; None where the finding does not apply.
        why: Why this matters, in a sentence or two.
        source: Paper, theory anchor or measurement it rests on.
        remedies: Names in `remedies.py`, the first to try first.
        explains: Codes that follow from this one, and are not repeated beside it.
    """

    code: str
    title: str
    needs: Sequence[str]
    rule: Callable[[Evidence], Detection | None]
    why: str
    source: str
    remedies: Sequence[str] = ()
    explains: Sequence[str] = ()

    @property
    def name(self) -> str:
        """Its code."""
        return self.code


@cache
def all_findings() -> Mapping[str, Finding]:
    """Every finding by code: files of `findings/`, then the entry point group `mfdiag.findings`."""
    own = {finding.code: finding for finding in files_of("mfdiag.diagnosis.findings", "FINDING")}
    return own | {finding.code: finding for finding in installed("mfdiag.findings", Finding, frozenset(own))}
