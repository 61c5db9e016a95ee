"""A derivative along the velocity that enters the target with the wrong sign."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding
from mfdiag.diagnosis.findings._targets import LEARNED
from mfdiag.diagnosis.findings._updates import refuted

__all__ = ["FINDING"]

_FAR = 2.0  # times the least factor in healthy models, which is slightly negative before intervals are learned

_NAMED = ("velocity_left_out", "velocity_reversed", "sign_reversed")


def _rule(evidence: Evidence) -> Detection | None:
    position = evidence.of_weights("target_coefficient", target="position")
    own, usual = evidence.of_weights("target_defect", target="meanflow"), evidence.usual("target_defect", "meanflow")
    least = _FAR * min(evidence.usual("target_coefficient", "position").low, 0.0)
    if position is None or own is None or not position.below(least) or not own.above(usual.median):
        return None
    if not evidence.learned(LEARNED) or all(refuted(evidence, name) for name in _NAMED):
        return None
    return Detection(
        "critical",
        f"Its part along v enters the target with the factor {position.value:.2g}, not 1.",
        [position, own],
        {"target_coefficient": "about 1", "target_defect": f"about {usual.median:.2g}"},
    )


FINDING = Finding(
    "reversed_derivative",
    "In the derivative of the target, v is left out or has the wrong sign",
    ("target_coefficient", "target_defect"),
    _rule,
    "The sign of (t - r) du/dt or of v in the tangent is wrong, or v is missing. Intervals are not learned well enough "
    "to tell which.",
    "docs/theory.md#targets",
    remedies=("tangent_code",),
    explains=("intervals_not_learned",),
)
