"""The verdict: which findings apply, in which order, and in which words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mfdiag.diagnosis.evidence import TRUSTED, Evidence, Value
from mfdiag.diagnosis.finding import SEVERITIES, Detection, Finding, all_findings
from mfdiag.diagnosis.remedies import Remedy, ranked
from mfdiag.numbers import with_interval

__all__ = ["Diagnosed", "Diagnosis", "diagnose"]

_FEWEST = {"too_few_samples": 2000, "heavy_tail": 0}  # samples that a status asks for; 0: more do not help


@dataclass(frozen=True)
class Diagnosed:
    """A finding that applies.

    Attributes:
        finding: The finding.
        detection: Why it applies.
        remedies: What to do, the first to try first.
    """

    finding: Finding
    detection: Detection
    remedies: Sequence[Remedy]

    @property
    def title(self) -> str:
        """What is wrong."""
        return self.detection.title or self.finding.title

    def record(self) -> dict[str, Any]:
        """As doctor.json holds it."""
        detection = self.detection
        return {
            "code": self.finding.code,
            "severity": detection.severity,
            "title": self.title,
            "summary": detection.summary,
            "certainty": detection.certainty,
            "where": detection.where,
            "evidence": [_evidence(value, detection.expected) for value in detection.evidence],
            "why": self.finding.why,
            "source": self.finding.source,
            "remedies": [entry.record() for entry in self.remedies],
        }


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor says of one checkpoint.

    Attributes:
        checkpoint: Its name.
        findings: The findings that apply, the most important first.
        not_checked: Code -> why it could not be judged.
        seconds: How long it took.
        noise: How noisy the gradient is, and which role makes the noise, in a sentence or two.
    """

    checkpoint: str
    findings: Sequence[Diagnosed]
    not_checked: Mapping[str, str]
    seconds: float
    noise: str = ""

    @property
    def healthy(self) -> bool:
        """Whether no finding is critical or a warning."""
        return all(entry.detection.severity == "note" for entry in self.findings)

    @property
    def verdict(self) -> str:
        """One or two sentences."""
        worst = next(iter(self.findings), None)
        if worst is None:
            return "Nothing to do: none of the findings that could be checked applies."
        if worst.detection.severity == "critical":
            return f"Something is wrong: {_lower(worst.title)}. {worst.detection.summary}"
        if worst.detection.severity == "warning":
            return f"It works, but {_lower(worst.title)}. {worst.detection.summary}"
        return f"Nothing is wrong, but note: {_lower(worst.title)}. {worst.detection.summary}"

    def record(self) -> dict[str, Any]:
        """As doctor.json holds it."""
        return {
            "verdict": self.verdict,
            "healthy": self.healthy,
            "checkpoint": self.checkpoint,
            "seconds": round(self.seconds, 1),
            "noise": self.noise,
            "findings": [entry.record() for entry in self.findings],
            "not_checked": [{"code": code, "reason": reason} for code, reason in self.not_checked.items()],
        }


def diagnose(evidence: Evidence, seconds: float = 0.0) -> Diagnosis:
    """Judge the evidence by every finding.

    Args:
        evidence: What was measured.
        seconds: How long that took.

    Returns:
        The diagnosis. A finding that follows from another one is not repeated.
    """
    detections = {
        code: detection for code, finding in all_findings().items() if (detection := finding.rule(evidence)) is not None
    }
    explained = {
        code for name in detections for code in all_findings()[name].explains if _outranks(detections, name, code)
    }
    shown = [code for code in detections if code not in explained]
    shown.sort(key=lambda code: (SEVERITIES.index(detections[code].severity), -detections[code].strength))
    findings = [
        Diagnosed(
            all_findings()[code],
            detections[code],
            ranked(all_findings()[code].remedies, evidence),
        )
        for code in shown
    ]
    wrong = any(entry.detection.severity == "critical" for entry in findings)
    noise = "" if wrong else _noise(evidence)  # what is broken first
    return Diagnosis(evidence.facts.checkpoint, findings, _not_checked(evidence, detections), seconds, noise)


def _noise(evidence: Evidence) -> str:
    """How noisy the gradient is, and whether tangent or target makes the noise; empty where nothing was measured."""
    variance = evidence.get("variance", estimator="meanflow")
    scale, tail = (evidence.get(name, estimator="meanflow") for name in ("noise_scale", "tail_index"))
    if variance is None or scale is None or tail is None:
        return ""
    if not variance.trusted:
        tangent = evidence.get("tail_index", estimator=evidence.facts.tangent)
        other = "" if tangent is None else f", {_number(tangent)} with the proxy's tangent"
        return (
            f"The gradient's variance is not measurable with {variance.n_samples:,} samples ({variance.status}): its "
            f"tail index is {_number(tail)}{other}."
        )
    sentence = f"Noise equals signal at a batch of {_number(scale)}." if scale.trusted else ""
    roles = {
        "tangent": evidence.get("mse_ratio", estimator=evidence.facts.tangent),
        "target": evidence.get("variance_ratio", estimator="plane:0,1"),
    }
    left = [f"in the {role} leaves {_number(value)} of it" for role, value in roles.items() if value and value.trusted]
    return f"{sentence} The proxy's velocity {', '.join(left)}." if left else sentence


def _number(value: Value) -> str:
    return with_interval(value.value, value.low, value.high)


def _outranks(detections: Mapping[str, Detection], name: str, code: str) -> bool:
    """Whether `name` is at least as severe as what it explains."""
    if code not in detections:
        return False
    return SEVERITIES.index(detections[name].severity) <= SEVERITIES.index(detections[code].severity)


def _not_checked(evidence: Evidence, detections: Mapping[str, Detection]) -> dict[str, str]:
    """Code -> why the evidence does not allow to judge it."""
    reasons = {}
    for code, finding in all_findings().items():
        if code in detections:
            continue
        for quantity in finding.needs:
            rows = evidence.frame[evidence.frame["quantity"] == quantity]
            if rows.empty:
                reasons[code] = f"{quantity} was not measured: {_absent(quantity, evidence)}"
                break
            bad = rows[~rows["status"].isin(TRUSTED)]
            if len(bad) == len(rows):
                reasons[code] = _untrusted(quantity, str(bad["status"].iloc[0]), int(bad["n_samples"].iloc[0]))
                break
    return reasons


def _absent(quantity: str, evidence: Evidence) -> str:
    """Why a quantity has no row."""
    if evidence.facts.nonfinite:
        return "the weights are not finite"
    if quantity == "null_label_error":
        return "the network or the data have no labels"
    if quantity in ("average_gain", "weight_distance"):
        return "the file has one set of weights, or the posterior over the data is unknown"
    if quantity == "velocity_error":
        return "the posterior over the data is unknown"
    if evidence.facts.no_gradient and quantity not in ("label_effect", "guidance_scale"):
        return evidence.facts.no_gradient
    return "it does not exist for this objective"


def _untrusted(quantity: str, status: str, n: int) -> str:
    more = _FEWEST.get(status)
    text = f"{quantity} is not measurable with {n:,} samples ({status})"
    return f"{text}; take about {max(more, 2 * n):,}" if more else text


def _evidence(value: Value, expected: Mapping[str, str]) -> dict[str, Any]:
    def number(x: float) -> float | None:
        return float(x) if math.isfinite(x) else None

    return {
        "quantity": value.quantity,
        "value": number(value.value),
        "ci_low": number(value.low),
        "ci_high": number(value.high),
        "expected": expected.get(value.quantity, ""),
        "where": value.where,
    }


def _lower(title: str) -> str:
    return title[0].lower() + title[1:]
