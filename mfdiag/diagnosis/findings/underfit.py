"""The velocity is not learned well."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding, above_healthy

__all__ = ["FINDING"]


def _rule(evidence: Evidence) -> Detection | None:
    return above_healthy(evidence, evidence.of_weights("velocity_error"), "The velocity error is {}.", by_time=True)


FINDING = Finding(
    "underfit",
    "The velocity is not learned well",
    ("velocity_error",),
    _rule,
    "The network at r = t is far from the velocity that the data have.",
    "docs/theory.md#conventions",
    remedies=("train_longer", "smaller_step"),
)
