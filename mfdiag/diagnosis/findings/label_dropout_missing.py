"""A null label that was never trained."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence, healthy
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]


def _rule(evidence: Evidence) -> Detection | None:
    ratio, usual = evidence.of_weights("null_label_error"), healthy("null_label_error")
    if ratio is None or not ratio.above(usual.high):
        return None
    guided = evidence.facts.guidance is not None
    return Detection(
        "critical" if guided else "warning",
        f"Without a label the velocity's error is {ratio.value:.2g} times that with it.",
        [ratio],
        {"null_label_error": f"below {usual.high:.2g}"},
        strength=ratio.low / usual.high,
    )


FINDING = Finding(
    "label_dropout_missing",
    "The null label was never trained",
    ("null_label_error",),
    _rule,
    "Guidance extrapolates from the velocity without a label. If no sample lost its label in training, that is noise.",
    "arXiv 2207.12598, section 3.2",
    remedies=("label_dropout",),
)
