"""Times that the training left out."""

from __future__ import annotations

import numpy as np

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_FACTOR = 4.0  # of the velocity error at the best quarter of the times


def _rule(evidence: Evidence) -> Detection | None:
    usual = evidence.usual("velocity_error")
    bins = [v for v in evidence.values("velocity_error", by="time", weights=evidence.facts.weights) if v.trusted]
    if len(bins) < 4:
        return None
    good = float(np.quantile([value.value for value in bins], 0.25))
    bound = max(_FACTOR * good, usual.high)
    bad = [value for value in bins if value.low > bound]
    if evidence.normalized or good > usual.high or not 2 <= len(bad) <= len(bins) / 2:
        return None
    worst = max(bad, key=lambda value: value.low)
    return Detection(
        "warning",
        f"At {worst.where} the velocity error is {worst.value:.2g}, at the best times {good:.2g}.",
        bad,
        {"velocity_error": f"below {usual.high:.2g} at all times"},
        where=", ".join(value.where for value in bad),
        strength=worst.low / bound,
    )


FINDING = Finding(
    "times_not_covered",
    "Some times were not trained",
    ("velocity_error",),
    _rule,
    "Sampling passes through all times from 1 to 0, also through those that the training rarely or never drew.",
    "docs/theory.md#conventions",
    remedies=("cover_times",),
    explains=("underfit", "untrained"),
)
