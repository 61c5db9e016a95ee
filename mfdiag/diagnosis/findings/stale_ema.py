"""Averaged weights that lag far behind the current ones."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_FACTOR = 3.0  # of the velocity error: more than averaging early weights costs
_HORIZONS = 5  # of the average that fit in a training that has forgotten its start


def _rule(evidence: Evidence) -> Detection | None:
    raw, average = (evidence.of_weights("velocity_error", name) for name in ("raw", "ema"))
    if raw is None or average is None:
        return None
    if not (average.trusted and raw.trusted and average.low > _FACTOR * raw.high):
        return None
    facts = evidence.facts
    never = average.above(0.9)
    too_long = bool(facts.ema_decay and facts.step and facts.step * (1 - facts.ema_decay) < _HORIZONS)
    cause = (
        f"a decay of {facts.ema_decay:g} averages over {1 / (1 - (facts.ema_decay or 0)):,.0f} steps, of {facts.step:,}"
        if too_long
        else "they look never updated"
        if never
        else "they are updated too rarely"
    )
    return Detection(
        "warning" if too_long else "critical",
        f"The velocity error of the averaged weights is {average.value:.2g}, that of the current ones {raw.value:.2g}: "
        f"{cause}.",
        [raw, average],
        {"velocity_error": "lower for averaged weights"},
        strength=average.low / max(_FACTOR * raw.high, 1e-9),
    )


FINDING = Finding(
    "stale_ema",
    "The averaged weights lag behind",
    ("velocity_error",),
    _rule,
    "Samples are drawn from the averaged weights. These are still those of the start.",
    "docs/theory.md#conventions",
    remedies=("update_average",),
    explains=("untrained", "underfit", "short_ema"),
)
