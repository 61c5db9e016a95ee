"""Targets other than MeanFlow's, in words, and the one whose identity a network satisfies best."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence, Value
from mfdiag.diagnosis.field_probe import TARGETS

__all__ = ["SENTENCES", "closest_target"]

SENTENCES = {
    "tangents_swapped": "the tangents of r and t are swapped",
    "velocity_left_out": "v is left out of the tangent",
    "time_left_out": "the derivative by t is left out",
    "derivative_left_out": "the derivative is left out",
    "sign_reversed": "the sign of (t - r) du/dt is reversed",
    "velocity_reversed": "v has the wrong sign in the tangent",
    "both_times_move": "r moves along with t",
}


def closest_target(evidence: Evidence) -> Value | None:
    """The least ratio of a target's defect and MeanFlow's; its key `target` names it."""
    ratios = [evidence.of_weights("target_defect_ratio", target=name) for name in TARGETS if name != "meanflow"]
    return min((value for value in ratios if value is not None), key=lambda value: value.value, default=None)
