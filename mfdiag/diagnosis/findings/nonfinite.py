"""Weights that are NaN or infinite."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence, Value
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]


def _rule(evidence: Evidence) -> Detection | None:
    names = evidence.facts.nonfinite
    if not names:
        return None
    count = float(len(names))
    return Detection(
        "critical",
        f"{len(names)} tensors hold NaN or infinite values, {names[0]} for one.",
        [Value("nonfinite_weights", count, count, count, "ok", len(names))],
        {"nonfinite_weights": "0"},
        where=", ".join(names[:3]),
        strength=100.0,
    )


FINDING = Finding(
    "nonfinite",
    "Weights are not finite",
    (),
    _rule,
    "Nothing can be measured or sampled. A step with an overflowing gradient or loss wrote them.",
    "the file",
    remedies=("earlier_checkpoint", "clip"),
)
