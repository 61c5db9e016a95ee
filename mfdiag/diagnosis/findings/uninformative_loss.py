"""A loss that cannot fall by construction."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence, Value
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_PINNING = 1.0  # power of the adaptive weight


def _rule(evidence: Evidence) -> Detection | None:
    power, log = evidence.facts.weighting_power, evidence.log
    pinned = None if log is None else log.pinned()
    if (power is None or power < _PINNING) and pinned is None:
        return None
    by_weight = power is not None and power >= _PINNING
    summary = "With p = 1, each sample's loss is its residual divided by itself." if by_weight else ""
    if pinned is not None:
        summary = f"The logged loss stays at {pinned:.3g}. {summary}".strip()
    failed = pinned is not None and evidence.untrained
    if failed:
        summary += " The network has not learned: a weight that is not detached leaves no gradient."
    return Detection(
        "critical" if failed else "note",
        summary,
        [Value("weighting_power", power, power, power, "ok", 1)] if power is not None else [],
        {"weighting_power": "below 1"},
        strength=100.0 if failed else 1.0,
    )


FINDING = Finding(
    "uninformative_loss",
    "The loss does not show progress",
    (),
    _rule,
    "Your loss cannot fall by construction. The model may improve all the same.",
    "docs/theory.md#weights",
    remedies=("watch_unweighted",),
)
