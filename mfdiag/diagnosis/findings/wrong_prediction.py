"""The network predicts something else than is declared."""

from __future__ import annotations

from mfdiag.diagnosis.findings._convention import convention_finding

__all__ = ["FINDING"]

FINDING = convention_finding(
    "wrong_prediction",
    "The network predicts something else than is declared",
    "Its output is converted to a velocity by the wrong formula.",
    lambda changes, times: "prediction" in changes,
)
