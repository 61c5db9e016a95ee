"""Times that the training left out, or at which the velocity is hard to learn."""

from __future__ import annotations

import numpy as np

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_FACTOR = 4.0  # of the velocity error at the best quarter of the times


def _rule(evidence: Evidence) -> Detection | None:
    bins = [v for v in evidence.values("velocity_error", by="time", weights=evidence.facts.weights) if v.trusted]
    if len(bins) < 4:
        return None
    good = float(np.quantile([value.value for value in bins], 0.25))
    bounds = [max(_FACTOR * good, evidence.usual("velocity_error", value.where).high) for value in bins]
    bad = [value for value, bound in zip(bins, bounds, strict=True) if value.low > bound]
    learned = good <= evidence.usual("velocity_error").high
    if evidence.normalized or not learned or not 2 <= len(bad) <= len(bins) / 2:
        return None
    worst, bound = max(zip(bins, bounds, strict=True), key=lambda pair: pair[0].low / pair[1])
    return Detection(
        "warning",
        f"At {worst.where} the velocity error is {worst.value:.2g}, at the best times {good:.2g}.",
        bad,
        {"velocity_error": f"below {bound:.2g} at these times"},
        where=", ".join(value.where for value in bad),
        strength=worst.low / bound,
    )


FINDING = Finding(
    "times_not_covered",
    "Some times are hardly learned",
    ("velocity_error",),
    _rule,
    "Sampling passes through all times from 1 to 0, also through those that the training rarely or never drew, or at "
    "which the velocity has detail that the network cannot follow.",
    "docs/theory.md#conventions",
    remedies=("cover_times",),
    explains=("underfit", "untrained"),
)
