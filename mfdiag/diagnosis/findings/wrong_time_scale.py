"""The network expects times on another scale."""

from __future__ import annotations

from mfdiag.diagnosis.findings._convention import convention_finding

__all__ = ["FINDING"]

FINDING = convention_finding(
    "wrong_time_scale",
    "The network expects times on another scale",
    "Its time embedding receives values far from those it was trained on.",
    lambda changes, times: "time_scale" in changes,
)
