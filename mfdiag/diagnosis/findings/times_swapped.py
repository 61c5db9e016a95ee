"""r and t are passed in the wrong order."""

from __future__ import annotations

from mfdiag.diagnosis.findings._convention import convention_finding

__all__ = ["FINDING"]

FINDING = convention_finding(
    "times_swapped",
    "r and t are passed in the wrong order",
    "Every number that depends on the interval is computed at another one.",
    lambda changes, times: "times" in changes and set(changes["times"]) == set(times),
)
