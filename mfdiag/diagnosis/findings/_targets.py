"""Targets other than MeanFlow's, in words, and the one whose identity a network satisfies best."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence, Value
from mfdiag.diagnosis.field_probe import TARGETS

__all__ = ["SENTENCES", "closest_target", "halved_defect", "least_defect"]

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
    """The least ratio of a target's defect and MeanFlow's; its key `target` names it.

    Only targets that the samples prefer to MeanFlow's more than in any healthy model count: the mean of defects alone
    may be that of a few samples.
    """
    ratios = []
    for name in TARGETS:
        ratio = evidence.of_weights("target_defect_ratio", target=name)
        preference = evidence.of_weights("target_preference", target=name)
        if ratio is None or preference is None or not ratio.below(1.0):
            continue
        if preference.above(evidence.usual("target_preference", name).high):
            ratios.append(ratio)
    return min(ratios, key=lambda value: value.value, default=None)


def least_defect(evidence: Evidence) -> Value | None:
    """The least defect of a target other than MeanFlow's."""
    defects = [evidence.of_weights("target_defect", target=name) for name in TARGETS if name != "meanflow"]
    return min((value for value in defects if value is not None), key=lambda value: value.value, default=None)


def halved_defect(evidence: Evidence) -> float | None:
    """The defect of MeanFlow's target with half of the derivative, as alpha-Flow at alpha = 0.5 has it."""
    names = ("derivative_left_out", "meanflow", "sign_reversed")
    rows = [evidence.of_weights("target_defect", target=name) for name in names]
    if None in rows:
        return None
    none, whole, reversed_ = (row.value for row in rows if row is not None)
    # |u - w + c (t-r) D u|^2 is quadratic in c, and known at c = 0, 1 and -1
    return none + (whole - reversed_) / 4 + ((whole + reversed_) / 2 - none) / 4
