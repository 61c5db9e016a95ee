"""The derivative dominates the target."""

from __future__ import annotations

from dataclasses import replace

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding, above_healthy

__all__ = ["FINDING"]

_CRITICAL = 3.0  # times the largest of healthy models


def _rule(evidence: Evidence) -> Detection | None:
    value = evidence.of_weights("derivative_size")
    summary = "The part of the target with the derivative is {} times the velocity in squared norm."
    detection = above_healthy(evidence, value, summary, by_time=True)
    if detection is None or value is None or not value.above(_CRITICAL * evidence.usual(value.quantity).high):
        return detection
    return replace(detection, severity="critical")


FINDING = Finding(
    "exploding_derivative",
    "The derivative dominates the target",
    ("derivative_size",),
    _rule,
    "The target is mostly the network's own derivative, which no data pin down. It grows with the frequencies of the "
    "time embedding.",
    "docs/theory.md#conventions",
    remedies=("smoother_times", "tangent_code", "mix_tangent", "finite_difference", "shorter_intervals", "clip"),
    explains=("untrained", "underfit", "derivative_noise"),
)
