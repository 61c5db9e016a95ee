"""The network has the data at the other end of time."""

from __future__ import annotations

from mfdiag.diagnosis.findings._convention import convention_finding

__all__ = ["FINDING"]

FINDING = convention_finding(
    "reversed_time",
    "The network has the data at the other end of time",
    "At t = 0 it was trained on noise, and is now asked about data.",
    lambda changes, times: "direction" in changes,
)
