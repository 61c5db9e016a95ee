"""Guidance in the training that is not declared, or another strength of it."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_FACTOR = 1.5  # between the measured and the declared strength


def _rule(evidence: Evidence) -> Detection | None:
    measured = evidence.of_weights("guidance_scale")
    declared = evidence.facts.guidance_scale
    declared = 1.0 if evidence.facts.guidance is None else declared
    if measured is None or declared is None or evidence.untrained:
        return None
    if not measured.above(_FACTOR * declared) and not (measured.below(declared / _FACTOR) and measured.above(0)):
        return None
    return Detection(
        "critical",
        f"Labels move the velocity {measured.value:.2g} times as far as the data do; declared is {declared:g}.",
        [measured],
        {"guidance_scale": f"{declared:g}"},
        strength=max(measured.low / declared, declared / measured.high) / _FACTOR,
    )


FINDING = Finding(
    "guidance_mismatch",
    "The network was trained with other guidance than declared",
    ("guidance_scale",),
    _rule,
    "The target that is measured is not the one it was trained on.",
    "docs/theory.md#guidance",
    remedies=("declare_guidance",),
    explains=("underfit",),
)
