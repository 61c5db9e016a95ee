"""The derivative in the target makes most of the noise."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding, above_healthy

__all__ = ["FINDING"]


def _rule(evidence: Evidence) -> Detection | None:
    summary = "Where r < t, the squared gradient norm is {} times that at r = t."
    return above_healthy(evidence, evidence.get("interval_moment"), summary)


FINDING = Finding(
    "derivative_noise",
    "The derivative in the target makes most of the noise",
    ("interval_moment",),
    _rule,
    "Flow matching alone, at r = t, is far less noisy: the noise enters by (t - r) (du/dx v_c + du/dt).",
    "docs/theory.md#rao-blackwell",
    remedies=(
        "mix_tangent",
        "weight_half",
        "equal_times",
        "shorter_intervals",
        "alpha_flow",
        "split",
        "finite_difference",
        "smoother_times",
    ),
)
