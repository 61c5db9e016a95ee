"""Current weights that are far noisier than their average."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]


def _rule(evidence: Evidence) -> Detection | None:
    gain, usual = evidence.get("average_gain"), evidence.usual("average_gain")
    if gain is None or not gain.above(usual.high):
        return None
    return Detection(
        "warning",
        f"Averaging the weights removes {gain.value:.0%} of the velocity's error: the last steps only add noise.",
        [gain],
        {"average_gain": f"below {usual.high:.2g}"},
        strength=(1 - usual.high) / max(1 - gain.low, 1e-6),
    )


FINDING = Finding(
    "step_size_too_large",
    "The step size is too large",
    ("average_gain",),
    _rule,
    "The weights bounce around the minimum: gradient noise times the step size exceeds what the curvature pulls back.",
    "bundled table of healthy models",
    remedies=("smaller_step", "larger_batch", "update_average"),
    explains=("underfit",),
)
