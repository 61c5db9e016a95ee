"""Long intervals contradict short ones."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding, above_healthy

__all__ = ["FINDING"]


def _rule(evidence: Evidence) -> Detection | None:
    return above_healthy(evidence, evidence.of_weights("interval_defect"), "The interval defect is {}.")


FINDING = Finding(
    "intervals_not_learned",
    "Long intervals contradict short ones",
    ("interval_defect",),
    _rule,
    "Averages over two halves of an interval do not make that over the whole, so one step does not do what many do.",
    "docs/theory.md#conventions",
    remedies=("tangent_code", "train_longer"),
)
