"""The network expects t - r where r is passed, or the reverse."""

from __future__ import annotations

from mfdiag.diagnosis.findings._convention import convention_finding

__all__ = ["FINDING"]

FINDING = convention_finding(
    "interval_for_r",
    "The network expects t - r where r is passed, or the reverse",
    "The network is evaluated at intervals that it never saw in training.",
    lambda changes, times: "times" in changes and set(changes["times"]) != set(times),
)
