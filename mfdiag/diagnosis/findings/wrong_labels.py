"""Class numbers differ from those in training."""

from __future__ import annotations

from mfdiag.diagnosis.findings._convention import convention_finding

__all__ = ["FINDING"]

FINDING = convention_finding(
    "wrong_labels",
    "Class numbers differ from those in training",
    "Each sample is measured under the label of another class, or with one that was never trained.",
    lambda changes, times: "labels" in changes,
)
