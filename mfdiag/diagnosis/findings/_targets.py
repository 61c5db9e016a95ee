"""Targets other than MeanFlow's, in words, and the one whose identity a network satisfies best."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence, Value
from mfdiag.diagnosis.field_probe import TARGETS
from mfdiag.diagnosis.findings._updates import refuted

__all__ = [
    "CLEARLY",
    "LEARNED",
    "SENTENCES",
    "also_untrained",
    "closest_target",
    "halved_defect",
    "least_defect",
    "reversed_position_part",
    "reversed_time_part",
]

CLEARLY = 1 / 3
"""Of MeanFlow's defect: from there on another target explains a network."""

LEARNED = 0.6
"""Velocity error up to which u(x_t, t, t) stands for v."""

SENTENCES = {
    "tangents_swapped": "the tangents of r and t are swapped",
    "velocity_left_out": "v is left out of the tangent",
    "time_left_out": "the derivative by t is left out",
    "derivative_left_out": "the derivative is left out",
    "sign_reversed": "the sign of (t - r) du/dt is reversed",
    "velocity_reversed": "v has the wrong sign in the tangent",
    "both_times_move": "r moves along with t",
}

_UNTRAINED = ("velocity_left_out", "derivative_left_out")
_INTERVALS_LEARNED = 0.25  # velocity error up to which intervals should be trained
_REVERSED = -0.3  # coefficient from which on a part of the derivative is reversed
_MOST = {
    "tangents_swapped": ("time", 0.0),
    "time_left_out": ("time", 0.2),
    "velocity_left_out": ("position", 0.2),
    "velocity_reversed": ("position", 0.0),
    "sign_reversed": ("time", 0.0),
}  # of a part of the derivative that a target lacks, or has reversed; MeanFlow's is near 1


def also_untrained(name: str) -> bool:
    """Whether intervals that were not trained yet look like this target too."""
    return name in _UNTRAINED


def closest_target(evidence: Evidence) -> Value | None:
    """The least ratio of a target's defect and MeanFlow's; its key `target` names it.

    Only targets that the samples prefer to MeanFlow's more than in any healthy model count: the mean of defects alone
    may be that of a few samples.
    """
    ratios = []
    for name in TARGETS:
        ratio = evidence.of_weights("target_defect_ratio", target=name)
        preference = evidence.of_weights("target_preference", target=name)
        if ratio is None or preference is None or not ratio.below(1.0) or _refuted(evidence, name):
            continue
        learned = evidence.learned(_INTERVALS_LEARNED if also_untrained(name) else LEARNED)
        if learned and preference.above(evidence.usual("target_preference", name).high):
            ratios.append(ratio)
    return min(ratios, key=lambda value: value.value, default=None)


def _refuted(evidence: Evidence, name: str) -> bool:
    """Whether the mean update does not vanish with this target, or a part enters that it does not have, or reversed.

    A network that hardly depends on r yet satisfies several identities by chance.
    """
    if refuted(evidence, name):
        return True
    part, most = _MOST.get(name, ("", 0.0))
    value = evidence.of_weights("target_coefficient", target=part)
    return value is not None and not value.low < most


def reversed_time_part(evidence: Evidence) -> Value | None:
    """The coefficient of du/dt, if it is negative, that of du/dx is not much, and no other target explains both."""
    position, time = (evidence.of_weights("target_coefficient", target=name) for name in ("position", "time"))
    closest = closest_target(evidence)
    if position is None or time is None or not time.below(_REVERSED) or position.below(_REVERSED):
        return None
    return None if closest is not None and closest.below(CLEARLY) else time


def reversed_position_part(evidence: Evidence) -> bool:
    """Whether du/dx enters with the wrong sign: the tangent or the whole derivative is reversed."""
    position = evidence.of_weights("target_coefficient", target="position")
    return position is not None and position.below(0.0)


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
