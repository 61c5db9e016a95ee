"""A null label that was never trained."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]


def _rule(evidence: Evidence) -> Detection | None:
    ratio, usual = evidence.of_weights("null_label_error"), evidence.usual("null_label_error")
    explained, learned = evidence.of_weights("label_explained"), evidence.of_weights("learned_share")
    # under guidance the velocity is that with the null label
    untrained = evidence.facts.guidance is not None and evidence.untrained
    known = explained is not None and explained.above(evidence.usual("label_explained").low / 2)
    if ratio is None or not (ratio.above(usual.high) or (untrained and known)):
        return None
    measured = [ratio, *(value for value in (learned, explained) if value is not None)]
    return Detection(
        "critical" if evidence.facts.guidance is not None else "warning",
        f"Without a label the network leaves {ratio.value:.2g} times as much of v_c unexplained as with it"
        + (", and explains less than a linear map." if untrained else "."),
        measured,
        {
            "null_label_error": f"below {usual.high:.2g}",
            "learned_share": f"above {evidence.least_learned:.2g}",
        },
        strength=max(ratio.low / usual.high, 2.0 if untrained else 0.0),
    )


FINDING = Finding(
    "label_dropout_missing",
    "The null label was never trained",
    ("null_label_error",),
    _rule,
    "Guidance extrapolates from the velocity without a label. If no sample lost its label in training, that is noise.",
    "arXiv 2207.12598, section 3.2",
    remedies=("label_dropout",),
    explains=("untrained", "underfit", "wrong_target", "guidance_mismatch", "step_size_too_large"),
)
