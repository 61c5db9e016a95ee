"""The data are on another scale than in training."""

from __future__ import annotations

from mfdiag.diagnosis.findings._convention import convention_finding

__all__ = ["FINDING"]

FINDING = convention_finding(
    "wrong_data_scale",
    "The data are on another scale than in training",
    "Noise levels, velocities and every variance belong to other data.",
    lambda changes, times: "data" in changes,
)
