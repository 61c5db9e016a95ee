"""The derivative dominates the target."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]


_CRITICAL = 3.0  # times the largest of healthy models


def _rule(evidence: Evidence) -> Detection | None:
    value, usual = evidence.of_weights("derivative_size"), evidence.usual("derivative_size")
    if value is None or not value.above(usual.high):
        return None
    largest = evidence.largest("derivative_size", "time", weights=evidence.facts.weights)
    return Detection(
        "critical" if value.above(_CRITICAL * usual.high) else "warning",
        f"The part of the target with the derivative is {value.value:.2g} times the velocity in squared norm.",
        [value] if largest is None else [value, largest],
        {"derivative_size": f"below {usual.high:.2g}"},
        where="" if largest is None else largest.where,
        strength=value.low / usual.high,
    )


FINDING = Finding(
    "exploding_derivative",
    "The derivative dominates the target",
    ("derivative_size",),
    _rule,
    "The target is mostly the network's own derivative, which no data pin down. It grows with the frequencies of the "
    "time embedding.",
    "docs/theory.md#conventions",
    remedies=("smoother_times", "tangent_code", "mix_tangent", "finite_difference", "shorter_intervals", "clip"),
    explains=("untrained", "underfit", "derivative_noise"),
)
