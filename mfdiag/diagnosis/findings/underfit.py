"""The velocity is not learned well."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]


def _rule(evidence: Evidence) -> Detection | None:
    value, usual = evidence.of_weights("velocity_error"), evidence.usual("velocity_error")
    if value is None or not value.above(usual.high):
        return None
    largest = evidence.largest("velocity_error", "time", weights=evidence.facts.weights)
    return Detection(
        "warning",
        f"The velocity error is {value.value:.2g}.",
        [value] if largest is None else [value, largest],
        {"velocity_error": f"below {usual.high:.2g}"},
        where="" if largest is None else largest.where,
        strength=value.low / usual.high,
    )


FINDING = Finding(
    "underfit",
    "The velocity is not learned well",
    ("velocity_error",),
    _rule,
    "The network at r = t is far from the velocity that the data have.",
    "docs/theory.md#conventions",
    remedies=("train_longer", "smaller_step"),
)
