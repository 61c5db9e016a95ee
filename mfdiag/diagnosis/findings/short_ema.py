"""Averaged weights that hardly differ from the current ones."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_LONG = 100  # steps that an average should span


def _rule(evidence: Evidence) -> Detection | None:
    distance, decay = evidence.get("weight_distance"), evidence.facts.ema_decay
    if distance is None:
        return None
    short = decay is not None and decay < 1 - 1 / _LONG
    usual = evidence.usual("weight_distance")
    if not short and not distance.below(usual.low):
        return None
    spans = f" A decay of {decay:g} averages over {1 / (1 - decay):.0f} steps." if decay is not None and short else ""
    return Detection(
        "warning",
        f"The averaged weights are within {distance.value:.2g} of the current ones, relative to their size.{spans}",
        [distance],
        {"weight_distance": f"above {usual.low:.2g}"},
        strength=usual.low / max(distance.value, 1e-9),
    )


FINDING = Finding(
    "short_ema",
    "The weights are averaged over few steps",
    ("weight_distance",),
    _rule,
    "An average over few steps removes little of the noise of the last steps.",
    "bundled table of healthy models",
    remedies=("longer_average",),
)
