"""Data points far outside the others."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]


def _rule(evidence: Evidence) -> Detection | None:
    outlier, usual = evidence.get("data_outlier"), evidence.usual("data_outlier")
    if outlier is None or not outlier.above(2 * usual.high):
        return None
    return Detection(
        "warning",
        f"The largest data point has {outlier.value:.0f} times the mean squared distance from the center.",
        [outlier],
        {"data_outlier": f"below {usual.high:.2g}"},
        strength=outlier.value / (2 * usual.high),
    )


FINDING = Finding(
    "outliers_in_data",
    "The data have outliers",
    ("data_outlier",),
    _rule,
    "Their velocities, and so their gradients, are as much larger.",
    "bundled table of healthy models",
    remedies=("check_data", "weight_half"),
)
