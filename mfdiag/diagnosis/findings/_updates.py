"""Trainings with a mistake whose mean update vanishes at the weights, as that of their own training does."""

from __future__ import annotations

from collections.abc import Collection

from mfdiag.diagnosis.evidence import Evidence, Value
from mfdiag.diagnosis.finding import Detection
from mfdiag.diagnosis.update_probe import THROUGH

__all__ = ["refuted", "settled_detection", "settled_target", "through_target"]

_SETTLED, _WHOLE = 0.8, (0.7, 1.3)  # preference and coefficient of the training whose fixed point the weights are
_NEARER = 0.5  # coefficient from which on the other mean update is nearer to zero; 1 at its fixed point
_MOST = 2.0  # where an interval must end to say so


def settled_target(evidence: Evidence) -> Value | None:
    """The preference of the training, other than MeanFlow's, whose mean update vanishes; its key `target` names it."""
    settled = []
    for preference in evidence.values("update_preference"):
        coefficient = evidence.get("update_coefficient", target=preference.keys["target"])
        if coefficient is None or not preference.above(_SETTLED):
            continue
        if coefficient.above(_WHOLE[0]) and coefficient.below(_WHOLE[1]):
            settled.append(preference)
    return max(settled, key=lambda value: value.value, default=None)


def settled_detection(evidence: Evidence, names: Collection[str]) -> Detection | None:
    """That the training whose mean update vanishes is one of `names`."""
    settled = settled_target(evidence)
    if settled is None or settled.keys["target"] not in names:
        return None
    summary = "The mean update of such a training vanishes at these weights, and MeanFlow's does not."
    return Detection("critical", summary, [settled], {settled.quantity: "-1"}, strength=3.0)


def through_target(evidence: Evidence) -> Detection | None:
    """That the mean gradient through the target is nearer to zero than the one without, and no other target's is."""
    through = evidence.get("update_coefficient", target=THROUGH)
    if through is None or not through.above(_NEARER) or through.above(1.0) or not through.below(_MOST):
        return None
    if evidence.untrained or settled_target(evidence) is not None:
        return None
    error = evidence.of_weights("velocity_error")
    if error is not None and error.above(
        evidence.usual("velocity_error").high
    ):  # early trainings have such updates too
        return None
    summary = "The mean gradient through the target is nearer to zero at these weights than the one without."
    title = "The gradient may flow through the target, or the training has not settled"
    return Detection("warning", summary, [through], {through.quantity: "0"}, title=title)


def refuted(evidence: Evidence, name: str) -> bool:
    """Whether MeanFlow's mean update is nearer to zero than that of a training."""
    coefficient = evidence.get("update_coefficient", target=name)
    return coefficient is not None and coefficient.below(_NEARER)
