"""A network whose output does not depend on r."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_ROUNDING = 1e-12  # of the output, squared


def _rule(evidence: Evidence) -> Detection | None:
    effect = evidence.of_weights("interval_effect")
    if effect is None or not effect.below(_ROUNDING):
        return None
    return Detection(
        "critical",
        "The output is the same for every r, so averages over [r, t] cannot differ from the velocity at t.",
        [effect],
        {"interval_effect": "above 0"},
        strength=100.0,
    )


FINDING = Finding(
    "interval_ignored",
    "The network does not use r",
    ("interval_effect",),
    _rule,
    "Neither r nor t - r reaches the output: an embedding is missing, or its weights are still zero.",
    "docs/theory.md#conventions",
    remedies=("pass_interval",),
    explains=("intervals_not_learned", "wrong_tangent", "missing_stop_gradient", "layer_not_trained"),
)
