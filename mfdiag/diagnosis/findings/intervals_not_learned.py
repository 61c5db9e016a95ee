"""Long intervals contradict short ones."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]


def _rule(evidence: Evidence) -> Detection | None:
    value, usual = evidence.of_weights("interval_defect"), evidence.usual("interval_defect")
    if value is None or not value.above(usual.high):
        return None
    return Detection(
        "warning",
        f"The interval defect is {value.value:.2g}.",
        [value],
        {"interval_defect": f"below {usual.high:.2g}"},
        strength=value.low / usual.high,
    )


FINDING = Finding(
    "intervals_not_learned",
    "Long intervals contradict short ones",
    ("interval_defect",),
    _rule,
    "Averages over two halves of an interval do not make that over the whole, so one step does not do what many do.",
    "docs/theory.md#conventions",
    remedies=("tangent_code", "train_longer"),
)
