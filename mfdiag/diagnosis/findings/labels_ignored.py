"""Labels that do not matter to the network."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_LEAST = 0.1  # of the effect that the data have


def _rule(evidence: Evidence) -> Detection | None:
    effect = evidence.of_weights("label_effect")
    if effect is None or evidence.untrained or not effect.below(_LEAST):
        return None
    return Detection(
        "warning",
        f"Labels change the velocity by {effect.value:.2g} of what they change in the data, in squared norm.",
        [effect],
        {"label_effect": "1 without guidance"},
        strength=_LEAST / max(effect.high, 1e-9),
    )


FINDING = Finding(
    "labels_ignored",
    "The network ignores labels",
    ("label_effect",),
    _rule,
    "It was trained without labels, with labels of other samples, or the labels say nothing about the samples.",
    "docs/theory.md#guidance",
    remedies=("check_labels",),
)
