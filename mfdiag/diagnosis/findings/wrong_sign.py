"""The velocity has the wrong sign."""

from __future__ import annotations

from mfdiag.diagnosis.findings._convention import convention_finding

__all__ = ["FINDING"]

FINDING = convention_finding(
    "wrong_sign",
    "The velocity has the wrong sign",
    "Sampling moves away from the data.",
    lambda changes, times: "sign" in changes,
)
